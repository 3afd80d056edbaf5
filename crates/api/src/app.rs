//! The router: all routes, and the layers around them.

use std::{net::IpAddr, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use health::MetricsAccess;
use runtime::Phase;
use tower_governor::{
    GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor,
};
use tower_http::{
    compression::CompressionLayer,
    cors::{AllowOrigin, CorsLayer},
};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    AppState, Error, ai, auth, body, client_ip::ClientIp, edge, limit_headers, openapi, routes, runs,
};

/// Ordinary request bodies.
const MAX_BODY: usize = 256 * 1024;

/// The whole API as one router.
pub fn router(state: AppState) -> Router {
    let routes = Router::from(routes(|routes| ordinary(routes, &state)));
    around(routes.layer(middleware::from_fn_with_state(state.clone(), auth::gate)), state)
}

/// Ordinary routes with everything that is around the API's, but for the gate: what authentication costs is the difference. For
/// the benchmark alone.
pub fn without_gate(state: AppState, routes: Router<AppState>) -> Router {
    around(ordinary(routes.into(), &state).into(), state)
}

/// What is around ordinary routes, and not around streams and AI calls.
fn ordinary(routes: OpenApiRouter<AppState>, state: &AppState) -> OpenApiRouter<AppState> {
    routes
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(body::refuse_longer_than::<MAX_BODY>))
        .layer(middleware::from_fn_with_state(state.clone(), request_timeout))
}

/// What is around all routes.
fn around(routes: Router<AppState>, state: AppState) -> Router {
    let access = MetricsAccess::from_config(&state.config.runtime);
    let health = health::router(state.health.clone(), state.metrics.clone(), access);
    // A shield in the process, before anything costs a round trip: 200 requests a second per address, bursts of 1000. The
    // limits that count are in Redis.
    let shield = GovernorConfigBuilder::default()
        .key_extractor(ByClient)
        .period(Duration::from_millis(5))
        .burst_size(1_000)
        .finish()
        .expect("burst and period are not zero");
    let buckets = shield.limiter().clone();
    let lifecycle = state.lifecycle.clone();
    state.lifecycle.spawn("burst shield upkeep", async move {
        // By number, not by time alone: a flood of addresses must not fill the memory until the next look.
        for second in 1_u64.. {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = lifecycle.reached(Phase::Closing) => return,
            }
            if second.is_multiple_of(30) || buckets.len() > 10_000 {
                buckets.retain_recent();
            }
        }
    });
    state.lifecycle.spawn("engine connections", state.ai.tend());
    state.lifecycle.spawn("revocation marks", auth::revocation::keep_marks(state.clone()));
    let shield = GovernorLayer::new(shield).error_handler(too_fast);
    routes
        .layer(shield)
        .with_state(state.clone())
        .merge(health)
        .fallback(|| async { Error::not_found() })
        // Streams are never compressed: the default predicate leaves text/event-stream alone.
        .layer(CompressionLayer::new())
        .layer(tower::util::option_layer(cors(&state)))
        .layer(middleware::from_fn_with_state(state, edge::layer))
}

/// Every route with its description but those of `health`; the ordinary ones with what `around` puts around them.
pub(crate) fn routes(
    around: impl FnOnce(OpenApiRouter<AppState>) -> OpenApiRouter<AppState>,
) -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(around(routes::router()))
        .merge(ai::router())
        .merge(runs::router())
        .merge(openapi::router())
}

/// Ordinary requests end after a while; streams and AI calls have limits of their own.
async fn request_timeout(State(state): State<AppState>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(state.config.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Error::unavailable("timeout", "The request took too long.", Duration::from_secs(1))
            .into_response(),
    }
}

fn too_fast(error: GovernorError) -> Response {
    match error {
        GovernorError::TooManyRequests { wait_time, .. } => {
            let detail = "Too many requests at once: wait as long as Retry-After says.";
            Error::new(StatusCode::TOO_MANY_REQUESTS, "too_fast", detail)
                .with_retry_after(Duration::from_secs(wait_time))
                .into_response()
        }
        error => Error::internal(error).into_response(),
    }
}

/// Keys the burst shield by the address that the whole API agrees on. tower_governor's own extractors believe the leftmost
/// X-Forwarded-For, which any client can write, and take each address of an IPv6 subscriber for a client.
#[derive(Debug, Clone)]
struct ByClient;

impl KeyExtractor for ByClient {
    type Key = IpAddr;

    fn extract<T>(&self, request: &axum::http::Request<T>) -> Result<IpAddr, GovernorError> {
        let client = request.extensions().get::<ClientIp>().ok_or(GovernorError::UnableToExtractKey)?;
        Ok(client.network())
    }
}

/// Exact origins or nothing: without origins no CORS header is ever sent.
fn cors(state: &AppState) -> Option<CorsLayer> {
    if state.config.cors_allowed_origins.is_empty() {
        return None;
    }
    let exact: Vec<HeaderValue> =
        state.config.cors_allowed_origins.iter().filter_map(|o| HeaderValue::from_str(o).ok()).collect();
    let exposed = ["x-request-id", "location", "idempotent-replayed", "x-ai-cache", "age"]
        .into_iter()
        .chain(limit_headers::EXPOSED);
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(exact))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static("x-request-id"),
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("x-ai-cache"),
        ])
        .expose_headers(exposed.map(HeaderName::from_static).collect::<Vec<_>>())
        .max_age(Duration::from_secs(600));
    Some(layer)
}
