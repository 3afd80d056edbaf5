//! The router: all routes, and the layers around them.

use std::time::Duration;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use config::ApiConfig;
use health::MetricsAccess;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;

use crate::{AppState, Error, ai, auth, body, edge, limit_headers, openapi, routes, runs, shield};

/// Ordinary request bodies.
const MAX_BODY: usize = 256 * 1024;

/// The whole API as one router.
///
/// One layer around all routes, [`edge::layer`], and one around the ordinary ones: each layer of a router costs a request
/// several allocations and a copy of all that it wraps.
pub fn router(state: AppState) -> Router {
    let routes =
        routes(|ordinary| ordinary.layer(middleware::from_fn_with_state(state.clone(), self::ordinary)));
    let access = MetricsAccess::from_config(&state.config.runtime);
    let health = health::router(state.health.clone(), state.metrics.clone(), access);
    state.lifecycle.spawn("burst shield upkeep", shield::keep_small(state.clone()));
    state.lifecycle.spawn("engine connections", state.ai.tend());
    state.lifecycle.spawn("revocation marks", auth::revocation::keep_marks(state.clone()));
    Router::from(routes)
        .with_state(state.clone())
        .merge(health)
        .fallback(|| async { Error::not_found() })
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

/// Ordinary requests are small and end after a while; streams and AI calls have limits of their own.
async fn ordinary(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    if let Err(error) = body::limit(&mut request, MAX_BODY) {
        return error.into_response();
    }
    match tokio::time::timeout(state.config.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Error::unavailable("timeout", "The request took too long.", Duration::from_secs(1))
            .into_response(),
    }
}

/// Exact origins or nothing: without origins no CORS header is ever sent.
pub(crate) fn cors(config: &ApiConfig) -> Option<CorsLayer> {
    if config.cors_allowed_origins.is_empty() {
        return None;
    }
    let exact: Vec<HeaderValue> =
        config.cors_allowed_origins.iter().filter_map(|o| HeaderValue::from_str(o).ok()).collect();
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
