//! What can go wrong on an AI route, as clients see it: OpenAI's error object, which its SDKs turn into their exceptions.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Outcome, Protocol, engine_error::EngineError};

/// An answer that is not a success.
#[derive(Debug)]
pub(super) enum Failure {
    /// Refused as on any other route.
    Refused(crate::Error),
    /// A field of the request is wrong.
    Param(&'static str, Cow<'static, str>),
    /// The engine's.
    Engine(Fault),
}

/// What an engine, or our way of talking to it, can do wrong.
#[derive(Debug)]
pub(super) enum Fault {
    /// It failed too often lately; it is not asked.
    BreakerOpen,
    /// No connection.
    Unreachable(reqwest::Error),
    /// The connection broke.
    Broken(reqwest::Error),
    /// It took too long.
    Timeout(Timer),
    /// It answered with an error.
    Status(Box<EngineError>),
    /// It answered with something that is no answer.
    Unexpected(&'static str),
    /// Its stream ended before the answer was complete.
    Truncated,
    /// This process shuts down.
    ShuttingDown,
    /// The caller's session was ended.
    Revoked,
}

/// Which time was up. The connect timeout is [`Fault::Unreachable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
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
    fn as_str(self) -> &'static str {
        match self {
            Self::FirstToken => "first_token",
            Self::Idle => "idle",
            Self::Total => "total",
            Self::Response => "response",
        }
    }
}

impl Fault {
    /// The status of the answer, as long as there is none.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::BreakerOpen | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Revoked => StatusCode::UNAUTHORIZED,
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

    /// How the request is accounted for.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Timeout(_) => Outcome::Timeout,
            Self::ShuttingDown => Outcome::Drained,
            Self::Revoked => Outcome::ClientAbort,
            _ => Outcome::EngineError,
        }
    }

    /// Whether the same request may be sent once more, as long as the client has seen nothing of an answer.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => true,
            Self::Status(error) => matches!(error.status, 502..=504),
            _ => false,
        }
    }

    /// Whether it says that the engine is not well, which counts for the breaker. The client's mistakes do not.
    pub(super) fn blames_engine(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Broken(_) | Self::Timeout(_) => true,
            Self::Status(error) => error.status >= 500,
            _ => false,
        }
    }

    /// Counts what the metrics want to know.
    pub(super) fn record(&self) {
        let timer = match self {
            Self::Timeout(timer) => timer.as_str(),
            Self::Unreachable(error) if error.is_timeout() => "connect",
            _ => return,
        };
        metrics::counter!("ai_engine_timeouts_total", "timeout" => timer).increment(1);
    }

    /// What the client is not told, for the log.
    pub(super) fn cause(&self) -> Option<String> {
        match self {
            Self::Unreachable(error) | Self::Broken(error) => {
                let sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
                Some(sources.map(ToString::to_string).collect::<Vec<_>>().join(": "))
            }
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
    pub(super) fn code(&self) -> Cow<'_, str> {
        match self {
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
            Self::ShuttingDown => "server_shutdown".into(),
            Self::Revoked => "revoked".into(),
        }
    }

    /// The client can do something about it, so it is told what the engine said.
    fn is_clients(&self) -> bool {
        matches!(self, Self::Status(_)) && self.status().is_client_error()
    }

    fn message(&self) -> Cow<'_, str> {
        match self {
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
            Self::ShuttingDown => "This server shuts down; send the request again.".into(),
            Self::Revoked => "This session was ended: log in again.".into(),
        }
    }

    fn object(&self) -> Value {
        let (kind, param) = match self {
            Self::ShuttingDown => ("server_shutdown", None),
            Self::Revoked => ("authentication_error", None),
            Self::Status(error) if self.is_clients() => {
                let usual = if error.status == 429 { "rate_limit_error" } else { "invalid_request_error" };
                (error.kind.as_deref().unwrap_or(usual), error.param.as_deref())
            }
            _ => ("server_error", None),
        };
        json!({"message": self.message(), "type": kind, "param": param, "code": self.code()})
    }

    /// The last event of a stream that has begun, in the protocol's own form. `number` is how many events went before.
    pub(super) fn event(&self, protocol: Protocol, number: u64) -> Bytes {
        match protocol {
            Protocol::Responses => {
                let error = json!({
                    "type": "error", "code": self.code(), "message": self.message(), "param": null,
                    "sequence_number": number,
                });
                format!("event: error\ndata: {error}\n\n").into()
            }
            Protocol::Passthrough => {
                format!("event: error\ndata: {}\n\n", json!({"error": self.object()})).into()
            }
            _ => format!("data: {}\n\n", json!({"error": self.object()})).into(),
        }
    }

    fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            Self::BreakerOpen | Self::ShuttingDown => Some(HeaderValue::from_static("1")),
            Self::Status(error) => error.retry_after.clone(),
            _ => None,
        }
    }
}

impl Failure {
    pub(super) fn param(name: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Param(name, message.into())
    }

    #[cfg(test)]
    pub(super) fn message(&self) -> String {
        match self {
            Self::Refused(error) => error.detail().to_owned(),
            Self::Param(_, message) => message.to_string(),
            Self::Engine(fault) => fault.message().into_owned(),
        }
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Engine(fault)
    }
}

/// SDKs wait as long as Retry-After says, if that is not long; after a longer time they would only try in vain.
const LONG_WAIT: Duration = Duration::from_secs(60);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(error) => {
                let mut response = error.into_response();
                let wait = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
                if wait.and_then(|v| v.parse().ok()).is_some_and(|s| Duration::from_secs(s) > LONG_WAIT) {
                    let name = HeaderName::from_static("x-should-retry");
                    response.headers_mut().insert(name, HeaderValue::from_static("false"));
                }
                response
            }
            Self::Param(param, message) => {
                let error = json!({"message": message, "type": "invalid_request_error", "param": param, "code": "invalid"});
                respond(StatusCode::BAD_REQUEST, &error)
            }
            Self::Engine(fault) => {
                let mut response = respond(fault.status(), &fault.object());
                if let Some(value) = fault.retry_after() {
                    response.headers_mut().insert(header::RETRY_AFTER, value);
                }
                response
            }
        }
    }
}

fn respond(status: StatusCode, error: &Value) -> Response {
    let mut response = Response::new(Body::from(json!({"error": error}).to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
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

    #[test]
    fn last_words_are_one_event_in_the_protocols_own_form() {
        let chat = Fault::ShuttingDown.event(Protocol::Chat, 7);
        let text = std::str::from_utf8(&chat).unwrap();
        let data: Value = serde_json::from_str(text.strip_prefix("data: ").unwrap().trim_end()).unwrap();
        assert_eq!(data["error"]["type"], "server_shutdown");
        assert!(text.ends_with("\n\n") && !text.contains("id:") && !text.contains("retry:"));
        let responses = Fault::Truncated.event(Protocol::Responses, 7);
        let text = std::str::from_utf8(&responses).unwrap();
        let data: Value =
            serde_json::from_str(text.strip_prefix("event: error\ndata: ").unwrap().trim_end()).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!("error"), &json!(7)));
    }
}
