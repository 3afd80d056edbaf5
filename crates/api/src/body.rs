//! Bodies of requests: how long, in which encoding, and what is said when one does not arrive as it was announced.

use std::{error::Error as StdError, io};

use axum::{
    extract::{DefaultBodyLimit, Request},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http_body::Body as _;

use crate::{Error, Result};

/// Refuses a body by its announced length, before any of it is read and before the client is told to send it
/// (`Expect: 100-continue`). Those without a length are cut off where they are read.
pub(crate) fn limit(request: &mut Request, max: usize) -> Result<()> {
    if request.body().size_hint().lower() > max as u64 {
        return Err(too_long(max));
    }
    DefaultBodyLimit::max(max).apply(request);
    Ok(())
}

/// [`limit`] as a layer.
pub(crate) async fn limit_to<const MAX: usize>(mut request: Request, next: Next) -> Response {
    match limit(&mut request, MAX) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// 413.
pub(crate) fn too_long(limit: usize) -> Error {
    let detail = format!("The body is larger than this route accepts, which is {limit} bytes.");
    Error::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

/// 415 for what is compressed: a few kilobytes may unfold to gigabytes.
pub(crate) fn refuse_compressed(headers: &HeaderMap) -> Result<()> {
    let identity = |value: &axum::http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(identity) {
        return Ok(());
    }
    let detail = "Compressed request bodies are not accepted.";
    Err(Error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail))
}

/// 408 for a body that took too long, 400 for one that broke off or is not the chunks it says it is.
pub(crate) fn incomplete(error: &(dyn StdError + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            let detail = "The body did not arrive in time.";
            return Error::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail);
        }
        cause = error.source();
    }
    Error::bad_request("body_incomplete", "The body did not arrive completely, or its chunks are malformed.")
}
