//! What can go wrong between us and an engine.

use std::{borrow::Cow, fmt, io};

use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::EngineError;

/// What an engine, or our way of talking to it, can do wrong. Its text is for the client; [`Fault::cause`] is for the log.
#[derive(Debug)]
pub enum Fault {
    /// No engine is configured for this model.
    UnknownModel(Box<str>),
    /// It failed too often lately; it is not asked.
    BreakerOpen,
    /// No connection.
    Unreachable(io::Error),
    /// The connection broke.
    Broken(io::Error),
    /// It took too long.
    Timeout(Timer),
    /// It answered with an error.
    Status(Box<EngineError>),
    /// It answered with something that is no answer.
    Unexpected(&'static str),
    /// Its stream ended before the answer was complete.
    Truncated,
}

/// Who may be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Another engine, or the same if there is no other.
    Any,
    /// Another engine only.
    Another,
}

/// Which time was up. The connect timeout is [`Fault::Unreachable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// Until the first event.
    FirstToken,
    /// Between two events.
    Idle,
    /// The whole stream.
    Total,
    /// An answer that is no stream.
    Response,
}

impl Timer {
    /// As metrics and logs name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstToken => "first_token",
            Self::Idle => "idle",
            Self::Total => "total",
            Self::Response => "response",
        }
    }
}

impl Fault {
    /// The status of an answer that has not begun.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownModel(_) => StatusCode::NOT_FOUND,
            Self::BreakerOpen => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Status(error) => match error.status {
                // The credential that the engine refuses is ours.
                401 | 403 | 407 => StatusCode::BAD_GATEWAY,
                503 => StatusCode::SERVICE_UNAVAILABLE,
                504 => StatusCode::GATEWAY_TIMEOUT,
                status @ 400..=499 => StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY),
                _ => StatusCode::BAD_GATEWAY,
            },
            Self::Unreachable(_) | Self::Broken(_) | Self::Unexpected(_) | Self::Truncated => {
                StatusCode::BAD_GATEWAY
            }
        }
    }

    /// Whether the same request may be sent once more, as long as the client has seen nothing of an answer: to whom?
    pub(crate) fn retry(&self) -> Option<Again> {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => Some(Again::Any),
            Self::Status(error) if matches!(error.status, 502..=504) => Some(Again::Any),
            Self::Status(error) if error.status == 429 => Some(Again::Another),
            _ => None,
        }
    }

    /// Whether it says that the engine is not well, which counts for the breaker. The client's mistakes do not.
    pub(crate) fn blames_engine(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Broken(_) | Self::Timeout(_) => true,
            Self::Status(error) => error.status >= 500,
            _ => false,
        }
    }

    /// Counts a time of a stream that was up. Those before its first event are counted by the call itself, also when another
    /// attempt then went well.
    pub fn record(&self, engine: &str) {
        if let Self::Timeout(timer @ (Timer::Idle | Timer::Total)) = self {
            timed_out(timer.as_str(), engine);
        }
    }

    /// Counts a time of an attempt that was up.
    pub(crate) fn record_attempt(&self, engine: &str) {
        match self {
            Self::Timeout(timer) => timed_out(timer.as_str(), engine),
            Self::Unreachable(error) if error.kind() == io::ErrorKind::TimedOut => {
                timed_out("connect", engine);
            }
            _ => {}
        }
    }

    /// What the client is not told, for the log.
    pub fn cause(&self) -> Option<String> {
        match self {
            Self::Unreachable(error) | Self::Broken(error) => Some(error.to_string()),
            // The client is told what the engine said of its request; that may quote it, and is none of the log's business.
            Self::Status(error) if self.is_clients() => Some(format!("status {}", error.status)),
            Self::Status(error) => {
                Some(format!("status {}: {}", error.status, error.message.as_deref().unwrap_or("no message")))
            }
            Self::Unexpected(what) => Some((*what).to_owned()),
            Self::Timeout(timer) => Some(timer.as_str().to_owned()),
            _ => None,
        }
    }

    /// Stable name of the fault, or the engine's own where it is the client's business.
    pub fn code(&self) -> Cow<'_, str> {
        match self {
            Self::UnknownModel(_) => "model_not_found".into(),
            Self::BreakerOpen => "engine_unavailable".into(),
            Self::Unreachable(_) => "engine_unreachable".into(),
            Self::Broken(_) => "engine_connection_lost".into(),
            Self::Timeout(_) => "engine_timeout".into(),
            Self::Status(error) if self.is_clients() => {
                error.code.as_deref().unwrap_or("engine_refused").into()
            }
            Self::Status(_) => "engine_error".into(),
            Self::Unexpected(_) => "engine_bad_answer".into(),
            Self::Truncated => "engine_stream_truncated".into(),
        }
    }

    /// The client can do something about it, so it is told what the engine said.
    pub fn is_clients(&self) -> bool {
        matches!(self, Self::Status(_)) && self.status().is_client_error()
    }

    /// What the client is told.
    pub fn message(&self) -> Cow<'_, str> {
        match self {
            Self::UnknownModel(model) => {
                format!("The model `{model}` is not offered here; GET /v1/models lists those that are.")
                    .into()
            }
            Self::BreakerOpen => "The AI engine is not available at the moment. Try again shortly.".into(),
            Self::Unreachable(_) => "The AI engine cannot be reached.".into(),
            Self::Broken(_) => "The connection to the AI engine was lost.".into(),
            Self::Timeout(Timer::FirstToken) => "The AI engine did not begin to answer in time.".into(),
            Self::Timeout(Timer::Idle) => "The AI engine stopped answering.".into(),
            Self::Timeout(Timer::Total) => "The answer took longer than a stream may.".into(),
            Self::Timeout(Timer::Response) => "The AI engine did not answer in time.".into(),
            Self::Status(error) if self.is_clients() => {
                error.message.as_deref().unwrap_or("The AI engine refused the request.").into()
            }
            Self::Status(error) => format!("The AI engine failed (status {}).", error.status).into(),
            Self::Unexpected(what) => format!("The AI engine's answer is unusable: {what}.").into(),
            Self::Truncated => "The AI engine ended its answer early.".into(),
        }
    }

    /// As OpenAI's error object.
    pub fn object(&self) -> Value {
        let (kind, param) = match self {
            Self::UnknownModel(_) => ("invalid_request_error", Some("model")),
            Self::Status(error) if self.is_clients() => {
                let usual = if error.status == 429 { "rate_limit_error" } else { "invalid_request_error" };
                (error.kind.as_deref().unwrap_or(usual), error.param.as_deref())
            }
            _ => ("server_error", None),
        };
        json!({"message": self.message(), "type": kind, "param": param, "code": self.code()})
    }

    /// When it may be tried again, as far as is known.
    pub fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            Self::BreakerOpen => Some(HeaderValue::from_static("1")),
            Self::Status(error) => error.retry_after.clone(),
            _ => None,
        }
    }
}

fn timed_out(timer: &'static str, engine: &str) {
    metrics::counter!("ai_engine_timeouts_total", "timeout" => timer, "engine" => engine.to_owned())
        .increment(1);
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable(error) | Self::Broken(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, body: &str) -> (StatusCode, Value) {
        let fault = Fault::Status(Box::new(EngineError::parse(status, body.as_bytes())));
        (fault.status(), fault.object())
    }

    #[test]
    fn the_clients_mistakes_keep_status_and_text() {
        let body = r#"{"error":{"message":"no such model","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#;
        let (code, object) = status(404, body);
        assert_eq!(code, 404);
        assert_eq!(json!({"error": object}), serde_json::from_str::<Value>(body).unwrap());
        for body in [
            r#"{"error":"too long"}"#,
            r#"{"detail":"too long"}"#,
            r#"{"object":"error","message":"too long","code":400}"#,
        ] {
            assert_eq!(status(400, body).1["message"], "too long", "{body}");
        }
        assert_eq!(status(422, "<html>").1["message"], "The AI engine refused the request.");
    }

    #[test]
    fn the_engines_own_trouble_is_a_gateway_error_without_its_text() {
        for (theirs, ours) in
            [(500, 502), (501, 502), (502, 502), (503, 503), (504, 504), (401, 502), (403, 502), (302, 502)]
        {
            let (code, object) = status(theirs, r#"{"error":{"message":"secret stack trace"}}"#);
            assert_eq!(code, ours, "{theirs}");
            assert!(!object.to_string().contains("secret"), "{object}");
        }
    }
}
