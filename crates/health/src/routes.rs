//! The routes that every role serves.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use config::RuntimeConfig;
use runtime::MetricsHandle;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use crate::{Registry, Report, Status};

#[derive(OpenApi)]
#[openapi(paths(livez, readyz, startupz, report, metrics))]
struct Document;

/// The same under the names that other platforms and people try first.
const ALIASES: [(&str, &str); 4] = [
    ("/health/live", "/livez"),
    ("/health/ready", "/readyz"),
    ("/ready", "/readyz"),
    ("/health/startup", "/startupz"),
];

/// Who may read `/metrics` on the public port.
#[derive(Debug, Clone)]
pub enum MetricsAccess {
    /// Anyone: development.
    Open,
    /// Holders of this bearer token.
    Token(SecretString),
    /// Nobody: there is an admin port, or no token was set.
    Closed,
}

impl MetricsAccess {
    /// With a token: for those who have it. Without one and without an admin port: open in development, closed elsewhere.
    pub fn from_config(config: &RuntimeConfig) -> Self {
        match (&config.telemetry.metrics_token, config.http.admin_port) {
            (Some(token), _) => Self::Token(token.clone()),
            (None, None) if !config.environment.is_deployed() => Self::Open,
            (None, _) => Self::Closed,
        }
    }
}

/// The body of `/readyz`.
#[derive(Serialize, ToSchema)]
struct Readiness {
    /// Whether requests may be sent here.
    ready: bool,
    /// The worst of the checks.
    status: Status,
    /// As in `/health`.
    phase: &'static str,
    /// The checks that fail, by name.
    waiting_for: Vec<String>,
}

/// The body of `/startupz`.
#[derive(Serialize, ToSchema)]
struct Startup {
    /// Whether everything was up once.
    started: bool,
}

#[derive(Clone)]
struct Metrics {
    handle: MetricsHandle,
    access: MetricsAccess,
}

/// Health and metrics for the public port.
pub fn router(registry: Registry, handle: MetricsHandle, access: MetricsAccess) -> Router {
    let health = Router::new()
        .route("/livez", get(livez))
        .route("/health/live", get(livez))
        .route("/readyz", get(readyz))
        .route("/ready", get(readyz))
        .route("/health/ready", get(readyz))
        .route("/startupz", get(startupz))
        .route("/health/startup", get(startupz))
        .route("/health", get(report))
        .with_state(registry);
    health.merge(Router::new().route("/metrics", get(metrics)).with_state(Metrics { handle, access }))
}

/// Health and open metrics for the admin port, which is reachable only from inside.
pub fn admin_router(registry: Registry, handle: MetricsHandle) -> Router {
    router(registry, handle, MetricsAccess::Open)
}

/// The description of what [`router`] mounts.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    for (alias, path) in ALIASES {
        let item = document.paths.paths.get(path).expect("an alias is of a documented path").clone();
        document.paths.paths.insert(alias.to_owned(), item);
    }
    document
}

/// Whether the process lives. Asks nobody.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = String, content_type = "text/plain")))]
async fn livez() -> Response {
    no_store(StatusCode::OK, "ok\n".into_response())
}

/// Whether requests may be sent here: the database answers and the process is not on its way out.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200, body = Readiness),
    (status = 503, body = Readiness, description = "Not ready: `waiting_for` says why")))]
async fn readyz(State(registry): State<Registry>) -> Response {
    let ready = registry.is_ready().await;
    let report = registry.report().await;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // What it waits for, without the details that /health has.
    let waiting_for: Vec<_> = report
        .checks
        .iter()
        .filter(|(_, c)| c.status == Status::Error)
        .map(|(name, _)| name.clone())
        .collect();
    let body = Readiness { ready, status: report.status, phase: report.phase, waiting_for };
    no_store(status, axum_json(&body))
}

/// Whether everything was up once since the start.
#[utoipa::path(get, path = "/startupz", tag = "health", responses((status = 200, body = Startup),
    (status = 503, body = Startup, description = "Still starting")))]
async fn startupz(State(registry): State<Registry>) -> Response {
    let started = registry.has_started().await;
    let status = if started { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    no_store(status, axum_json(&Startup { started }))
}

/// Every check with what it found: for dashboards and people.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Report, description = "`ok`, or `degraded`: something optional is out"),
    (status = 503, body = Report, description = "`error`: something that is needed is out")))]
async fn report(State(registry): State<Registry>) -> Response {
    let report = registry.report().await;
    let status =
        if report.status == Status::Error { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    no_store(status, axum_json(&report))
}

/// Metrics for Prometheus; where there is an admin port, only there.
#[utoipa::path(get, path = "/metrics", tag = "health", security((), ("metrics_token" = [])),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 401), (status = 404)))]
async fn metrics(State(metrics): State<Metrics>, headers: HeaderMap) -> Response {
    match &metrics.access {
        MetricsAccess::Open => {}
        MetricsAccess::Token(token) if bearer_is(&headers, token.expose_secret()) => {}
        // 404, as for any route that is not there for this client.
        MetricsAccess::Closed => return StatusCode::NOT_FOUND.into_response(),
        MetricsAccess::Token(_) => {
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")]).into_response();
        }
    }
    let body = metrics.handle.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

fn bearer_is(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    given.and_then(|v| v.strip_prefix("Bearer ")).is_some_and(|given| {
        aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), token.as_bytes()).is_ok()
    })
}

fn axum_json(body: &impl serde::Serialize) -> Response {
    let bytes = serde_json::to_vec(body).expect("reports serialise");
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

fn no_store(status: StatusCode, mut response: Response) -> Response {
    *response.status_mut() = status;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}
