//! What can go wrong on an AI route, as clients see it: OpenAI's error object, which its SDKs turn into their exceptions.

use std::{borrow::Cow, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use engine::Fault;
use serde_json::{Value, json};

use super::{Outcome, Protocol};

/// An answer that is not a success.
#[derive(Debug)]
pub(super) enum Failure {
    /// Refused as on any other route.
    Refused(crate::Error),
    /// A field of the request is wrong.
    Param(&'static str, Cow<'static, str>),
    /// It was begun, and came to nothing.
    Stopped(Stop),
}

/// Why a request to an engine ended without a whole answer.
#[derive(Debug)]
pub(super) enum Stop {
    /// The engine's fault.
    Engine(Fault),
    /// This process shuts down.
    ShuttingDown,
    /// The caller's session was ended.
    Revoked,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Engine(fault)
    }
}

impl Stop {
    fn status(&self) -> StatusCode {
        match self {
            Self::Engine(fault) => fault.status(),
            Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Revoked => StatusCode::UNAUTHORIZED,
        }
    }

    /// How the request is accounted for.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Engine(Fault::Timeout(_)) => Outcome::Timeout,
            Self::Engine(_) => Outcome::EngineError,
            Self::ShuttingDown => Outcome::Drained,
            Self::Revoked => Outcome::ClientAbort,
        }
    }

    /// Stable name, or the engine's own where it is the client's business.
    pub(super) fn code(&self) -> Cow<'_, str> {
        match self {
            Self::Engine(fault) => fault.code(),
            Self::ShuttingDown => "server_shutdown".into(),
            Self::Revoked => "revoked".into(),
        }
    }

    fn message(&self) -> Cow<'_, str> {
        match self {
            Self::Engine(fault) => fault.message(),
            Self::ShuttingDown => "This server shuts down; send the request again.".into(),
            Self::Revoked => "This session was ended: log in again.".into(),
        }
    }

    /// As OpenAI's error object.
    fn object(&self) -> Value {
        let kind = match self {
            Self::Engine(fault) => return fault.object(),
            Self::ShuttingDown => "server_shutdown",
            Self::Revoked => "authentication_error",
        };
        json!({"message": self.message(), "type": kind, "param": null, "code": self.code()})
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
            Self::Engine(fault) => fault.retry_after(),
            Self::ShuttingDown => Some(HeaderValue::from_static("1")),
            Self::Revoked => None,
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
            Self::Stopped(stop) => stop.message().into_owned(),
        }
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

impl From<Failure> for crate::Error {
    /// For routes that do not speak OpenAI, before an engine was asked.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Param(param, message) => Self::invalid(param, message),
            Failure::Stopped(stop) => Self::internal(anyhow::anyhow!("no engine was asked: {}", stop.code())),
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Stopped(fault.into())
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
            Self::Stopped(stop) => {
                let mut response = respond(stop.status(), &stop.object());
                if let Some(value) = stop.retry_after() {
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

    #[test]
    fn last_words_are_one_event_in_the_protocols_own_form() {
        let chat = Stop::ShuttingDown.event(Protocol::Chat, 7);
        let text = std::str::from_utf8(&chat).unwrap();
        let data: Value = serde_json::from_str(text.strip_prefix("data: ").unwrap().trim_end()).unwrap();
        assert_eq!(data["error"]["type"], "server_shutdown");
        assert!(text.ends_with("\n\n") && !text.contains("id:") && !text.contains("retry:"));
        let responses = Stop::from(Fault::Truncated).event(Protocol::Responses, 7);
        let text = std::str::from_utf8(&responses).unwrap();
        let data: Value =
            serde_json::from_str(text.strip_prefix("event: error\ndata: ").unwrap().trim_end()).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!("error"), &json!(7)));
    }
}
