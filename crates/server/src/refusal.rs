//! Requests that are refused for their head, before any router sees them.
//!
//! Hyper answers heads that it cannot parse by itself, with a status and nothing else, and takes some that are ambiguous. Both
//! get the same answer here: a problem document (RFC 9457) with a request id and the headers that every answer has, after
//! which the connection is closed.

use std::fmt::Write as _;

use axum::{
    body::{Body, Bytes},
    middleware::Next,
};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Version,
    header::{self, HeaderName, HeaderValue},
};
use uuid::Uuid;

/// What a JSON API needs of the OWASP secure headers; on every answer. A page that needs more freedom sets its own.
pub const SECURITY_HEADERS: [(HeaderName, HeaderValue); 6] = [
    (header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=63072000; includeSubDomains")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Hyper's own answer to a head that it cannot parse. No handler of ours ends an answer so: they all have a body or more headers.
const HYPERS_OWN: &str = "\r\nconnection: close\r\ncontent-length: 0\r\ndate: ";

/// What RFC 9112 asks a server to refuse and hyper lets pass; the text says what it is.
pub(crate) fn ambiguous<B>(request: &Request<B>) -> Option<&'static str> {
    let headers = request.headers();
    // Section 3.2: exactly one Host; in HTTP/1.0 it may be absent.
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), None) => {}
        (None, _) if request.version() == Version::HTTP_10 => {}
        _ => return Some("A request has exactly one Host."),
    }
    // Section 6.1: a coding that is not understood must not be guessed at, and chunked is applied once. Hyper looks at the
    // last coding only. (Transfer-Encoding beside Content-Length closes the connection in hyper, as section 6.3 asks.)
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        _ => Some("The only Transfer-Encoding that is understood is chunked, once."),
    }
}

/// The answer to such a request.
pub(crate) fn response(detail: &str) -> Response<Body> {
    let (headers, body) = answer(StatusCode::BAD_REQUEST, detail);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    *response.headers_mut() = headers;
    response
}

/// What is to be written in the place of these bytes, if they are hyper's own answer.
pub(crate) fn instead_of(written: &[u8]) -> Option<Bytes> {
    let head = written.strip_prefix(b"HTTP/1.1 ")?;
    let (status, detail) = match head.get(..3)? {
        b"400" => (StatusCode::BAD_REQUEST, "The request's head is malformed."),
        b"414" => (StatusCode::URI_TOO_LONG, "The address is too long."),
        b"431" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "The request's head may have 32 KiB and 100 header lines.",
        ),
        _ => return None,
    };
    // Status line, these three headers, the date, an empty line: nothing before and nothing behind.
    let line = head.iter().position(|byte| *byte == b'\r')?;
    let date = head.get(line..)?.strip_prefix(HYPERS_OWN.as_bytes())?;
    if date.iter().position(|byte| *byte == b'\r')? + 4 != date.len() || !date.ends_with(b"\r\n\r\n") {
        return None;
    }
    let (headers, body) = answer(status, detail);
    let mut out = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len()).into_bytes();
    out.extend_from_slice(b"date: ");
    out.extend_from_slice(&date[..date.len() - 2]);
    for (name, value) in &headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_bytes());
    Some(out.into())
}

fn answer(status: StatusCode, detail: &str) -> (HeaderMap, String) {
    metrics::counter!("http_heads_refused_total", "status" => status.as_u16().to_string()).increment(1);
    let (mut headers, body) = problem(status, "malformed_request", detail);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    (headers, body)
}

/// Of every answer.
fn headers(id: &str) -> HeaderMap {
    let mut headers = HeaderMap::from_iter(SECURITY_HEADERS);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-request-id", HeaderValue::from_str(id).expect("hex digits make a header"));
    headers
}

fn problem(status: StatusCode, code: &str, detail: &str) -> (HeaderMap, String) {
    let id = Uuid::now_v7().simple().to_string();
    let mut headers = headers(&id);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    let (number, title) = (status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    let mut body = String::new();
    // Nothing here needs escaping.
    let _ = write!(
        body,
        r#"{{"type":"about:blank","title":"{title}","status":{number},"detail":"{detail}","code":"{code}","request_id":"{id}"}}"#
    );
    (headers, body)
}

/// A layer for routers that serve health and metrics only: what every answer has, and a problem document for those that are
/// refused without a word. The API's own edge does this and more.
pub async fn complete(request: axum::extract::Request, next: Next) -> Response<Body> {
    let mut response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if is_error && !response.headers().contains_key(header::CONTENT_TYPE) {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => ("not_found", "There is nothing here."),
            StatusCode::METHOD_NOT_ALLOWED => ("method_not_allowed", "This route has no such method."),
            StatusCode::UNAUTHORIZED => {
                ("missing_credentials", "Send `Authorization: Bearer METRICS_TOKEN`.")
            }
            _ => ("refused", "The request was refused."),
        };
        let (headers, body) = problem(status, code, detail);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().extend(headers);
        *response.body_mut() = Body::from(body);
        return response;
    }
    for (name, value) in &headers(&Uuid::now_v7().simple().to_string()) {
        response.headers_mut().entry(name).or_insert_with(|| value.clone());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Sat, 21 Nov 2026 03:51:28 GMT\r\n\r\n";

    #[test]
    fn only_hypers_own_answer_is_replaced() {
        let text = String::from_utf8(instead_of(BARE.as_bytes()).unwrap().to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.contains("\r\ndate: Sat, 21 Nov 2026 03:51:28 GMT\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        for other in [
            BARE.replace("431", "404"),
            BARE.replace("length: 0", "length: 1"),
            format!("{BARE}x"),
            format!("x{BARE}"),
            BARE.replace("date:", "x: y\r\ndate:"),
            BARE.replace("GMT\r\n", "GMT\r\nx: y\r\n"),
            BARE[..60].to_owned(),
            String::new(),
        ] {
            assert!(instead_of(other.as_bytes()).is_none(), "{other}");
        }
    }
}
