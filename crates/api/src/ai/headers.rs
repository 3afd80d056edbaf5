//! Headers of the answers.

use std::{fmt::Write as _, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use limits::{Admitted, ChargeState};

/// OpenAI's rate-limit headers, from where the limits stand after admission.
pub(super) fn rate_limits(headers: &mut HeaderMap, admitted: &Admitted) {
    for (policy, unit) in [("ai-requests", "requests"), ("ai-tokens", "tokens")] {
        let Some(state) = admitted.states.iter().find(|state| state.policy == policy) else { continue };
        let ChargeState { limit, remaining, reset, .. } = state;
        for (what, value) in
            [("limit", limit.to_string()), ("remaining", remaining.to_string()), ("reset", duration(*reset))]
        {
            let name = HeaderName::try_from(format!("x-ratelimit-{what}-{unit}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// Headers of an event stream. Proxies must neither hold it back (nginx reads X-Accel-Buffering) nor compress it.
pub(super) fn event_stream(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// As OpenAI writes durations: `12ms`, `1.5s`, `6m0s`, `1h0m0s`.
fn duration(duration: Duration) -> String {
    let ms = duration.as_micros().div_ceil(1_000);
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (seconds, rest) = (ms / 1_000, ms % 1_000);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match (seconds / 3_600, seconds / 60 % 60) {
        (0, 0) => Ok(()),
        (0, minutes) => write!(text, "{minutes}m"),
        (hours, minutes) => write!(text, "{hours}h{minutes}m"),
    };
    let _ = write!(text, "{}", seconds % 60);
    if rest > 0 {
        let fraction = format!("{rest:03}");
        let _ = write!(text, ".{}", fraction.trim_end_matches('0'));
    }
    text + "s"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_openai_writes_them() {
        for (ms, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1_000, "1s"),
            (8_640, "8.64s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (59_999, "59.999s"),
            (3_600_000, "1h0m0s"),
            (86_399_500, "23h59m59.5s"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration(Duration::from_micros(1)), "1ms", "never sooner than true");
    }
}
