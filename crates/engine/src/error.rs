//! Errors as engines tell them, in whatever form.

use http::HeaderValue;
use serde::Deserialize;
use serde_json::Value;

/// An engine's own error.
#[derive(Debug, Default)]
pub struct EngineError {
    /// Its status, as it came.
    pub status: u16,
    /// Its text, shown for the client's own mistakes (4xx) only.
    pub message: Option<String>,
    /// Its `type`; shown as the message is.
    pub kind: Option<String>,
    /// Its `param`.
    pub param: Option<String>,
    /// Its `code`.
    pub code: Option<String>,
    /// Its Retry-After.
    pub retry_after: Option<HeaderValue>,
}

impl EngineError {
    /// Reads an error's body: OpenAI's object, or the simpler ones of vLLM, Ollama and FastAPI.
    pub fn parse(status: u16, body: &[u8]) -> Self {
        let mut error = Self { status, ..Self::default() };
        let Ok(body) = serde_json::from_slice::<Value>(body) else { return error };
        let inner = match body.get("error") {
            Some(Value::String(message)) => {
                error.message = Some(clean(message));
                return error;
            }
            Some(inner @ Value::Object(_)) => inner,
            _ => &body,
        };
        let text = |name| match inner.get(name) {
            Some(Value::String(text)) => Some(clean(text)),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        error.message = text("message").or_else(|| text("detail"));
        error.kind = text("type");
        error.param = text("param");
        error.code = text("code");
        error
    }

    /// The error in the data of an event, if that is what it is.
    pub fn from_event(data: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct InBand {
            error: Value,
        }
        let found: InBand = serde_json::from_slice(data).ok()?;
        let status = found.error.get("code").or_else(|| found.error.get("status")).and_then(Value::as_u64);
        let status = status.filter(|s| (400..600).contains(s)).unwrap_or(502) as u16;
        (!found.error.is_null()).then(|| Self::parse(status, data))
    }
}

/// Without credentials, ours above all: engines quote the key that they refuse.
fn clean(text: &str) -> String {
    runtime::redact::text(text).chars().take(2_000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_inside_streams_are_told_from_other_events() {
        assert!(EngineError::from_event(br#"{"choices":[],"x":"\"error\""}"#).is_none());
        assert!(EngineError::from_event(br#"{"error":null,"id":"x"}"#).is_none());
        assert!(EngineError::from_event(b"[DONE]").is_none());
        assert_eq!(EngineError::from_event(br#"{"error":{"message":"x","code":429}}"#).unwrap().status, 429);
        assert_eq!(
            EngineError::from_event(br#"{"error":{"message":"x","code":"bad"}}"#).unwrap().status,
            502
        );
    }
}
