//! Errors as clients see them: RFC 9457 problem documents, or OpenAI's error object on the routes that speak OpenAI.
//!
//! A handler returns [`Error`]; the [`edge`](crate::edge) turns it into the body, because only there the request id and the
//! route's dialect are known. Internal errors are logged once, there, and never show their text.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use limits::Limited;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// The result of a handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An answer that is not a success.
#[derive(Debug, Clone)]
pub struct Error {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    fields: Vec<FieldError>,
    headers: Vec<(header::HeaderName, HeaderValue)>,
    /// For the log, never for the client.
    source: Option<Arc<anyhow::Error>>,
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's name.
    pub field: Cow<'static, str>,
    /// What is wrong with it.
    pub message: Cow<'static, str>,
}

/// The problem document (RFC 9457), for the API's description.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` tells problems apart.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The status.
    pub status: u16,
    /// What happened and what to do.
    pub detail: String,
    /// Stable name of this kind of problem.
    pub code: String,
    /// To be quoted to support.
    pub request_id: String,
    /// What is wrong with which field, for status 422.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl Error {
    /// Any problem: `code` is its stable name, `detail` says what to do.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), fields: Vec::new(), headers: Vec::new(), source: None }
    }

    /// 400.
    pub fn bad_request(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401 with the challenge of RFC 6750.
    pub fn unauthorized(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        let challenge = match code {
            // No credential at all: RFC 6750, section 3.1, wants no error code then.
            "missing_credentials" => "Bearer",
            _ => r#"Bearer error="invalid_token""#,
        };
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// 401 when there is no credential.
    pub fn missing_credentials() -> Self {
        let detail = "Send `Authorization: Bearer TOKEN`, or an API key as `X-API-Key`.";
        Self::unauthorized("missing_credentials", detail)
    }

    /// 403.
    pub fn forbidden(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, detail)
    }

    /// 404, the same for what does not exist and for what is somebody else's.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing here.")
    }

    /// 401 for a token whose session was ended.
    pub fn session_ended() -> Self {
        Self::unauthorized("revoked", "This session was ended: log in again.")
    }

    /// 409.
    pub fn conflict(code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 422 for one field.
    pub fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::invalid_fields(vec![FieldError { field: field.into(), message: message.into() }])
    }

    /// 422 for several fields.
    pub fn invalid_fields(fields: Vec<FieldError>) -> Self {
        let detail =
            fields.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; ");
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
        error.fields = fields;
        error
    }

    /// 503 with Retry-After.
    pub fn unavailable(code: &'static str, detail: impl Into<Cow<'static, str>>, retry: Duration) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).with_retry_after(retry)
    }

    /// 500; `source` goes to the log and to Sentry.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something went wrong on our side. It has been reported; quote the request id to ask about it.",
        );
        error.source = Some(Arc::new(source.into()));
        error
    }

    /// 429 with Retry-After.
    pub fn limited(limited: &Limited) -> Self {
        let (policy, limit) = (limited.policy, limited.limit);
        let detail = match limited.retry_after {
            None => format!(
                "The request costs more than the whole limit of {limit} of policy `{policy}`: make it smaller."
            ),
            Some(_) if limited.period.is_zero() => {
                format!("Only {limit} requests at a time are allowed by policy `{policy}`.")
            }
            Some(_) => {
                let period = limited.period.as_secs_f64();
                format!(
                    "The limit of {limit} per {period} s of policy `{policy}` is used up: wait as long as Retry-After says."
                )
            }
        };
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
        match limited.retry_after {
            Some(after) => error.with_retry_after(after),
            None => error.with_header(
                header::HeaderName::from_static("x-should-retry"),
                HeaderValue::from_static("false"),
            ),
        }
    }

    /// Gives a special case of a problem a name of its own.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with_header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds Retry-After, rounded up to whole seconds (RFC 9110, section 10.2.3).
    #[must_use]
    pub fn with_retry_after(self, after: Duration) -> Self {
        self.with_header(
            header::RETRY_AFTER,
            HeaderValue::from(after.as_millis().div_ceil(1000).max(1) as u64),
        )
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<anyhow::Error>) -> Self {
        self.source = Some(Arc::new(source.into()));
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable name.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// What the client is told.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The cause, for the log and for operators; never for a client.
    pub fn source(&self) -> Option<&anyhow::Error> {
        self.source.as_deref()
    }

    /// The body as a problem document.
    pub(crate) fn problem(&self, request_id: &str) -> Value {
        let mut body = Map::new();
        body.insert("type".into(), "about:blank".into());
        body.insert("title".into(), self.status.canonical_reason().unwrap_or("Error").into());
        body.insert("status".into(), self.status.as_u16().into());
        body.insert("detail".into(), self.detail.as_ref().into());
        body.insert("code".into(), self.code.into());
        body.insert("request_id".into(), request_id.into());
        if !self.fields.is_empty() {
            body.insert("errors".into(), json!(self.fields));
        }
        Value::Object(body)
    }

    /// The body as OpenAI's error object, which its SDKs turn into their exception classes.
    pub(crate) fn openai(&self, request_id: &str) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let param = self.fields.first().map(|f| f.field.as_ref());
        json!({ "error": {
            "message": self.detail,
            "type": kind,
            "param": param,
            "code": self.code,
            "request_id": request_id,
        } })
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        for (name, value) in &self.headers {
            response.headers_mut().insert(name, value.clone());
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        if error.is_unavailable() {
            let detail = "The database is not available at the moment.";
            return Self::unavailable("database_unavailable", detail, Duration::from_secs(2))
                .with_source(error);
        }
        Self::internal(error)
    }
}

impl From<webhooks::EmitError> for Error {
    fn from(error: webhooks::EmitError) -> Self {
        match error {
            webhooks::EmitError::Database(error) => error.into(),
            webhooks::EmitError::Queue(error) => error.into(),
            error @ webhooks::EmitError::Data(_) => Self::internal(error),
        }
    }
}

impl From<jobs::Error> for Error {
    fn from(error: jobs::Error) -> Self {
        match error {
            jobs::Error::Database(error) => db::Error::from(error).into(),
            jobs::Error::Deadline(_) => db::Error::Deadline.into(),
            error => Self::internal(error),
        }
    }
}
