//! `ballast api`.

use std::process::ExitCode;

use ::api::AppState;
use config::{ApiConfig, EnvVars};
use runtime::{Clock, Telemetry};

use super::{refuse_configuration, role};

/// Serve the API on PORT.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  PORT=8080 DATABASE_URL=... REDIS_URL=... ENGINE_URL=http://localhost:11434/v1 ballast api"
)]
pub(crate) struct Api {}

impl Api {
    #[expect(clippy::unused_self, reason = "every command is run the same way")]
    pub(crate) fn run(self) -> ExitCode {
        let config = match ApiConfig::from_vars(&EnvVars) {
            Ok(config) => config,
            Err(problems) => return refuse_configuration(&problems),
        };
        let telemetry = Telemetry::start("ballast-api", &config.runtime);
        let metrics = telemetry.metrics();
        runtime::run(config.runtime.shutdown, telemetry, async |lifecycle| {
            let listener = role::bind(&config.runtime.http)?;
            let http = config.runtime.http.clone();
            let state = AppState::from_config(config, lifecycle.clone(), Clock::system(), metrics.clone())?;
            let router = ::api::router(state.clone());
            role::serve(listener, router, &state.health, &metrics, &http, &lifecycle)?;
            role::watch_database(&lifecycle, state.database.clone());
            let database = state.database.clone();
            role::keep_metrics(&lifecycle, metrics, move || database.record_metrics());
            anyhow::Ok(())
        })
    }
}
