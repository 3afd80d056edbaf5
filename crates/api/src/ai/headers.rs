//! Headers of the answers.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

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
