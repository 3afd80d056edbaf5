//! `ballast all`.

use std::process::ExitCode;

use ::api::AppState;
use config::{ApiConfig, EnvVars, WorkerConfig};
use runtime::{Clock, Telemetry};

use super::{refuse_configuration, role, worker::start_jobs};

/// API and worker in one process, for small deployments. Needs the settings of both.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  PORT=8080 DATABASE_URL=... REDIS_URL=... ENGINE_URL=... ballast all")]
pub(crate) struct All {}

impl All {
    #[expect(clippy::unused_self, reason = "every command is run the same way")]
    pub(crate) fn run(self) -> ExitCode {
        let (config, worker) = match (ApiConfig::from_vars(&EnvVars), WorkerConfig::from_vars(&EnvVars)) {
            (Ok(api), Ok(worker)) => (api, worker),
            (Err(api), Err(worker)) => return refuse_configuration(&api.and(worker)),
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => return refuse_configuration(&problems),
        };
        let telemetry = Telemetry::start("ballast", &config.runtime);
        let metrics = telemetry.metrics();
        runtime::run(config.runtime.shutdown, telemetry, async |lifecycle| {
            let http = config.runtime.http.clone();
            let listener = role::bind(&http)?;
            let state = AppState::from_config(config, lifecycle.clone(), Clock::system(), metrics.clone())?;
            let router = ::api::router(state.clone());
            role::serve(listener, router, &state.health, &metrics, &http, &lifecycle)?;
            let database = state.database.clone();
            let handle = start_jobs(worker, database.clone(), &state.health, &lifecycle).await?;
            role::watch_database(&lifecycle, database.clone());
            role::keep_metrics(&lifecycle, metrics, move || {
                database.record_metrics();
                handle.record_metrics();
            });
            anyhow::Ok(())
        })
    }
}
