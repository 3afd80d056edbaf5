//! `ballast worker`.

use std::{process::ExitCode, time::Duration};

use config::{EnvVars, WorkerConfig};
use db::Database;
use health::{Kind, MetricsAccess, Registry};
use runtime::{Lifecycle, Telemetry};

use super::{refuse_configuration, role};

/// Run jobs and cron lines; health and metrics are on PORT.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  PORT=8081 DATABASE_URL=... REDIS_URL=... ballast worker")]
pub(crate) struct Worker {}

impl Worker {
    #[expect(clippy::unused_self, reason = "every command is run the same way")]
    pub(crate) fn run(self) -> ExitCode {
        let config = match WorkerConfig::from_vars(&EnvVars) {
            Ok(config) => config,
            Err(problems) => return refuse_configuration(&problems),
        };
        let telemetry = Telemetry::start("ballast-worker", &config.runtime);
        let metrics = telemetry.metrics();
        runtime::run(config.runtime.shutdown, telemetry, async |lifecycle| {
            let http = config.runtime.http.clone();
            let access = MetricsAccess::from_config(&config.runtime);
            let listener = role::bind(&http)?;
            let database = Database::from_config(&config.stores.database, "ballast-worker")?;
            let registry = Registry::new(lifecycle.clone(), env!("CARGO_PKG_VERSION"));
            let checked = database.clone();
            registry.register("postgres", Kind::Required, Duration::from_millis(2_500), move || {
                let database = checked.clone();
                async move { database.check().await }
            });
            let router = role::only_health(health::router(registry.clone(), metrics.clone(), access));
            role::serve(listener, router, &registry, &metrics, &http, &lifecycle)?;
            let handle = start_jobs(config, database.clone(), &registry, &lifecycle).await?;
            role::watch_database(&lifecycle, database.clone());
            role::keep_metrics(&lifecycle, metrics, move || {
                database.record_metrics();
                handle.record_metrics();
            });
            anyhow::Ok(())
        })
    }
}

/// Starts the queue runner and puts its pulse into the health report. It waits for the database by itself.
pub(crate) async fn start_jobs(
    config: WorkerConfig,
    database: Database,
    registry: &Registry,
    lifecycle: &Lifecycle,
) -> anyhow::Result<::worker::Handle> {
    let context = ::worker::Context::new(database, config, role::http_client()?);
    let handle = ::worker::start(context, lifecycle).await?;
    handle.register_checks(registry);
    Ok(handle)
}
