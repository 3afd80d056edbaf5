//! What one request gets: the configuration, overridden by control route, headers and markers in the body.

use std::time::Duration;

use http::HeaderMap;

use crate::{Fault, SimConfig};

/// Names and meanings of all settings, for messages and the control route.
pub(crate) const SETTINGS: [(&str, &str); 6] = [
    ("first-token-ms", "from the request to the first token, may be a fraction"),
    ("token-interval-ms", "between two tokens, may be a fraction; 0: no pause"),
    ("tokens", "length of the answer"),
    ("chunk-bytes", "pads every event of a stream to at least this size"),
    ("unicode", "true: CJK and emoji in the answer; default: when the prompt has them"),
    ("fault", "NAME[:ARG], or none"),
];

const MAX_TOKENS: usize = 100_000_000;
const MAX_CHUNK_BYTES: usize = 64 << 20;
const MARKER: &str = "[[sim ";

/// The settings of one request, resolved.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) first_token: Duration,
    pub(crate) token_interval: Duration,
    pub(crate) tokens: usize,
    pub(crate) chunk_bytes: usize,
    pub(crate) unicode: Option<bool>,
    pub(crate) fault: Option<Fault>,
}

impl Plan {
    pub(crate) fn new(config: &SimConfig) -> Self {
        Self {
            first_token: config.first_token_delay,
            token_interval: config.token_interval,
            tokens: config.tokens,
            chunk_bytes: 0,
            unicode: None,
            fault: config.fault.clone(),
        }
    }

    /// One setting by its name; the error is a sentence for the client.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "first-token-ms" => self.first_token = millis(name, value)?,
            "token-interval-ms" => self.token_interval = millis(name, value)?,
            "tokens" => self.tokens = number(name, value, MAX_TOKENS)?,
            "chunk-bytes" => self.chunk_bytes = number(name, value, MAX_CHUNK_BYTES)?,
            "unicode" => {
                self.unicode = Some(value.parse().map_err(|_| format!("{name} must be true or false"))?);
            }
            "fault" if value == "none" => self.fault = None,
            "fault" => self.fault = Some(value.parse()?),
            _ => {
                let names = SETTINGS.map(|(name, _)| name).join(", ");
                return Err(format!("unknown setting \"{name}\"; known: {names}"));
            }
        }
        Ok(())
    }

    /// `x-sim-NAME: VALUE` for every setting.
    pub(crate) fn set_from_headers(&mut self, headers: &HeaderMap) -> Result<(), String> {
        for (name, value) in headers {
            if let Some(setting) = name.as_str().strip_prefix("x-sim-") {
                let value = value.to_str().map_err(|_| format!("{name} must be ASCII"))?;
                self.set(setting, value.trim())?;
            }
        }
        Ok(())
    }

    /// The last `[[sim NAME=VALUE ...]]` in the body. The raw bytes are searched, so it may stand in any field of any protocol.
    pub(crate) fn set_from_body(&mut self, body: &[u8]) -> Result<(), String> {
        let marker = body.windows(MARKER.len()).rposition(|window| window == MARKER.as_bytes());
        let Some(start) = marker else { return Ok(()) };
        let rest = &body[start + MARKER.len()..];
        let end =
            rest.windows(2).position(|window| window == b"]]").ok_or("[[sim ... is not closed by ]]")?;
        let pairs = std::str::from_utf8(&rest[..end]).map_err(|_| "[[sim ...]] must be UTF-8")?;
        for (name, value) in parse_pairs(pairs)? {
            self.set(&name, &value)?;
        }
        Ok(())
    }
}

/// `NAME=VALUE NAME=VALUE`, split but not yet checked.
pub(crate) fn parse_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split_whitespace()
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("\"{pair}\" is not NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn millis(name: &str, value: &str) -> Result<Duration, String> {
    let millis: f64 = value.parse().map_err(|_| format!("{name} must be a number of milliseconds"))?;
    Duration::try_from_secs_f64(millis / 1000.0)
        .ok()
        .filter(|duration| *duration <= Duration::from_hours(24))
        .ok_or_else(|| format!("{name} must be between 0 and one day"))
}

fn number(name: &str, value: &str, max: usize) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| *number <= max);
    number.ok_or_else(|| format!("{name} must be a number up to {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_marker_in_the_body_counts() {
        let mut plan = Plan::new(&SimConfig::instant());
        let body = br#"{"messages":[{"content":"[[sim tokens=7 fault=html]]"},{"content":"[[sim tokens=5 token-interval-ms=0.5]]"}]}"#;
        plan.set_from_body(body).unwrap();
        assert_eq!((plan.tokens, plan.token_interval, plan.fault), (5, Duration::from_micros(500), None));
    }

    #[test]
    fn bad_settings_are_told() {
        let mut plan = Plan::new(&SimConfig::instant());
        for bad in [
            "[[sim tokens=5",
            "[[sim tokens]]",
            "[[sim tokens=-1]]",
            "[[sim x=1]]",
            "[[sim first-token-ms=nan]]",
        ] {
            assert!(plan.set_from_body(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(plan.set("fault", "nonsense").unwrap_err().contains("hang-before-headers"));
    }
}
