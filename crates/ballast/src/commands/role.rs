//! What every role does around its work: bind, serve health, keep metrics.

use std::time::Duration;

use axum::Router;
use config::HttpConfig;
use health::Registry;
use runtime::{Lifecycle, MetricsHandle, Phase};
use tokio::net::TcpListener;

/// Binds the role's port before anything is connected: platforms probe early, and `/livez` can answer.
pub(crate) fn bind(http: &HttpConfig) -> anyhow::Result<TcpListener> {
    let listener = server::bind(http.host, http.port)?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    Ok(listener)
}

/// Serves `router` on the role's port, and health with open metrics on the admin port if there is one.
pub(crate) fn serve(
    listener: TcpListener,
    router: Router,
    registry: &Registry,
    metrics: &MetricsHandle,
    http: &HttpConfig,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    lifecycle.spawn("http server", server::serve(listener, router, http.clone(), lifecycle.clone()));
    if let Some(port) = http.admin_port {
        let listener = server::bind(http.host, port)?;
        tracing::info!(address = %listener.local_addr()?, "metrics and health for the inside");
        let router = only_health(health::admin_router(registry.clone(), metrics.clone()));
        lifecycle.spawn("admin server", server::serve(listener, router, http.clone(), lifecycle.clone()));
    }
    Ok(())
}

/// A router that has nothing but health and metrics, answering like the API's.
pub(crate) fn only_health(health: Router) -> Router {
    health.layer(axum::middleware::from_fn(server::complete))
}

/// Keeps gauges current and histograms bounded.
pub(crate) fn keep_metrics(
    lifecycle: &Lifecycle,
    metrics: MetricsHandle,
    record: impl Fn() + Send + 'static,
) {
    let life = lifecycle.clone();
    lifecycle.spawn("metrics upkeep", async move {
        loop {
            record();
            metrics.upkeep();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
                () = life.reached(Phase::Closing) => return,
            }
        }
    });
}

/// Waits for the database in the background and says so; readiness tells the outside.
pub(crate) fn watch_database(lifecycle: &Lifecycle, database: db::Database) {
    let life = lifecycle.clone();
    lifecycle.spawn_task(async move { database.wait_until_ready(&life).await });
}

/// The client for other systems' APIs: bounded in time, follows no redirect, ignores the environment's proxy.
pub(crate) fn http_client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(30))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}
