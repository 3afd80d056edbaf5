//! The outermost layer: what every answer has, errors and panics included.
//!
//! Request id in, request id out; one log line and one metric per request; panics become 500s; errors get their body here;
//! security headers on everything.

use std::{
    cell::RefCell, collections::HashMap, convert::Infallible, future::ready, panic::AssertUnwindSafe,
    sync::Arc, time::Duration,
};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use metrics::{Counter, Histogram};
use tokio::time::Instant;
use tower::{Layer as _, ServiceExt as _};
use tower_http::compression::CompressionLayer;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{AppState, Error, auth::gate, client_ip::ClientIp, limit_headers::LimitStates};

/// The request's id header, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Those that are added here.
const OUR_HEADERS: usize = 10;
/// Probes come every second or so and would drown the log.
const QUIET: [&str; 9] = [
    "/livez",
    "/readyz",
    "/startupz",
    "/health",
    "/ready",
    "/health/live",
    "/health/ready",
    "/health/startup",
    "/metrics",
];
/// An ordinary request that takes longer is a warning. AI routes take as long as the engine takes, streams as long as there is news.
const SLOW: Duration = Duration::from_secs(1);
/// Routes that speak OpenAI's dialect, errors included.
const OPENAI: [&str; 5] = ["/v1/chat/", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/ai/"];

/// The request's id, in its extensions.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// The layer.
pub async fn layer(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = request.method().clone();
    let peer = request.extensions().get::<server::Peer>().map_or(([0, 0, 0, 0], 0).into(), |p| p.0);
    let client = state.client_ips.resolve(peer, request.headers());
    let openai = speaks_openai(request.uri().path());
    let quiet = QUIET.contains(&route);
    let accepted = request.headers().get(header::ACCEPT_ENCODING).cloned();
    let limits = LimitStates::default();
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(client);
    request.extensions_mut().insert(limits.clone());

    let span = tracing::info_span!(
        "request",
        request_id = &*id,
        method = method.as_str(),
        // The template and never the path: ids belong to users, and a query may hold a secret.
        route,
        user_id = tracing::field::Empty,
        trace_id = tracing::field::Empty,
    );
    if let Some(parent) = request.headers().get("traceparent").and_then(|v| v.to_str().ok()) {
        runtime::trace_context::set_parent(&span, parent);
    }
    runtime::trace_context::identify(&span);
    let mut response = async {
        let answer = answer(&state, matched.as_ref().map(MatchedPath::as_str), client, request, next);
        let answer = AssertUnwindSafe(answer).catch_unwind().await;
        // The panic itself is in the log, see `runtime::Telemetry`.
        let mut response = answer.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response());
        if let Some(accepted) = accepted {
            response = Box::pin(compress(accepted, response)).await;
        }
        write_error(&mut response, &id, openai);
        response
    }
    .instrument(span.clone())
    .await;
    make_room(response.headers_mut());
    limits.write(response.headers_mut(), openai);
    security_headers(response.headers_mut());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    let (status, took) = (response.status(), started.elapsed());
    record(&method, route, status, took);
    if !quiet {
        let duration_ms = took.as_micros() as f64 / 1_000.0;
        // For a stream this is the time to its head; its end has a line of its own.
        let status = status.as_u16();
        span.in_scope(|| {
            if took > SLOW && !openai && !streams(&response) {
                tracing::warn!(status, duration_ms, client = %client.0, "request");
            } else {
                tracing::info!(status, duration_ms, client = %client.0, "request");
            }
        });
    }
    response
}

/// Past CORS, which answers preflights by itself and marks every other answer.
async fn answer(
    state: &AppState,
    route: Option<&str>,
    client: ClientIp,
    request: Request,
    next: Next,
) -> Response {
    let Some(cors) = &state.cors else { return admit(state, route, client, request, next).await };
    let inner = tower::service_fn(|request| {
        let next = next.clone();
        async { Ok::<_, Infallible>(admit(state, route, client, request, next).await) }
    });
    let answer = Box::pin(cors.layer(inner).oneshot(request));
    answer.await.unwrap_or_else(|never| match never {})
}

/// Past the shield and the gate.
async fn admit(
    state: &AppState,
    route: Option<&str>,
    client: ClientIp,
    mut request: Request,
    next: Next,
) -> Response {
    if !route.is_some_and(|route| QUIET.contains(&route))
        && let Err(error) = state.shield.pass(client)
    {
        return error.into_response();
    }
    match gate(state, route, &mut request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// As the client can read it. Streams are never compressed: the layer's default leaves text/event-stream alone. It looks at
/// the request for one header only, so it need not stand around all that happens before.
async fn compress(accepted: HeaderValue, response: Response) -> Response {
    let mut request = Request::default();
    request.headers_mut().insert(header::ACCEPT_ENCODING, accepted);
    let mut response = Some(response);
    let given = tower::service_fn(|_: Request| ready(response.take().ok_or(())));
    let compressed = CompressionLayer::new().layer(given).oneshot(request).await;
    compressed.map_or_else(|()| StatusCode::INTERNAL_SERVER_ERROR.into_response(), |r| r.map(Body::new))
}

/// Whether errors on this path are OpenAI's error object.
pub(crate) fn speaks_openai(path: &str) -> bool {
    OPENAI.iter().any(|prefix| path.starts_with(prefix))
}

fn streams(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// A client may bring its id; anything but a plain token is replaced, because it goes into logs and headers.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let given = headers.get(X_REQUEST_ID).and_then(|v| v.to_str().ok());
    let fine = |id: &&str| {
        (8..=64).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    given.filter(fine).map_or_else(|| Uuid::now_v7().simple().to_string().into(), Into::into)
}

/// Gives an error its body, and logs it if it is ours.
fn write_error(response: &mut Response, id: &str, openai: bool) {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return;
    }
    let error = match response.extensions_mut().remove::<Error>() {
        Some(error) => error,
        // Made by a layer or by the router: has no body worth keeping, unless it is a document already.
        None if response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|t| t.as_bytes().starts_with(b"application/")) =>
        {
            return;
        }
        None => bare(status),
    };
    if let Some(source) = error.source().filter(|_| status == StatusCode::INTERNAL_SERVER_ERROR) {
        tracing::error!(error = %format_args!("{source:#}"), "request failed");
    } else if let Some(source) = error.source() {
        tracing::warn!(error = %format_args!("{source:#}"), code = error.code(), "request refused");
    }
    let (body, content_type) = if openai {
        (error.openai(id), "application/json")
    } else {
        (error.problem(id), "application/problem+json")
    };
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *response.body_mut() = Body::from(body.to_string());
}

/// An error that the router or a layer made.
pub(crate) fn bare(status: StatusCode) -> Error {
    let (code, detail) = match status.as_u16() {
        // Of a route that says nothing itself: the metrics, which have a token of their own.
        401 => ("missing_credentials", "Send `Authorization: Bearer TOKEN`."),
        404 => ("not_found", "There is nothing here."),
        405 => ("method_not_allowed", "This route has no such method; the Allow header lists those it has."),
        408 => ("timeout", "The request took too long."),
        413 => ("body_too_large", "The body is larger than this route accepts."),
        429 => ("too_fast", "Too many requests at once: wait as long as Retry-After says."),
        503 => ("unavailable", "Not available at the moment."),
        500..=599 => ("internal", "Something went wrong on our side."),
        _ => ("refused", "The request was refused."),
    };
    Error::new(status, code, detail)
}

/// For all that come. Moving the few that are there into a map that is large enough costs a third of letting theirs grow.
fn make_room(headers: &mut HeaderMap) {
    let roomy = HeaderMap::with_capacity(headers.len() + OUR_HEADERS);
    let few = std::mem::replace(headers, roomy);
    headers.extend(few);
}

/// A page that needs more freedom has set its own policy before.
fn security_headers(headers: &mut HeaderMap) {
    for (name, value) in server::SECURITY_HEADERS {
        headers.entry(name).or_insert(value);
    }
    // What depends on who asks must not be kept by a cache; a handler may say otherwise.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// The method as a label. A client may invent as many as it likes, and each would be a series of its own for ever.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// The counter and the histogram of one method and status of a route.
type Series = (&'static str, StatusCode, Counter, Histogram);

thread_local! {
    /// By route. Looking a metric up by its labels costs more than counting, and there are only so many.
    static SERIES: RefCell<HashMap<String, Vec<Series>>> = RefCell::default();
}

fn record(method: &Method, route: &str, status: StatusCode, took: Duration) {
    let method = known(method);
    SERIES.with_borrow_mut(|routes| {
        if !routes.contains_key(route) {
            routes.insert(route.to_owned(), Vec::new());
        }
        let Some(of_route) = routes.get_mut(route) else { return };
        let at = of_route.iter().position(|series| series.0 == method && series.1 == status);
        let at = at.unwrap_or_else(|| {
            let labels = [
                ("method", method.to_owned()),
                ("route", route.to_owned()),
                ("status", status.as_u16().to_string()),
            ];
            let requests = metrics::counter!("http_requests_total", &labels);
            let seconds = metrics::histogram!("http_request_seconds", &labels[..2]);
            of_route.push((method, status, requests, seconds));
            of_route.len() - 1
        });
        let (_, _, requests, seconds) = &of_route[at];
        requests.increment(1);
        seconds.record(took);
    });
}
