//! `GET /v1/whoami` without authentication and limits, with everything else that is around it in the API: `cargo xtask bench api`
//! measures it beside the API's own. A program of its own, so that the product has no switch for this.

use std::process::ExitCode;

use api::extract::Json;
use axum::{Router, routing::get};
use config::{ApiConfig, EnvVars};
use runtime::{Clock, Telemetry};
use serde_json::json;
use uuid::Uuid;

fn main() -> anyhow::Result<ExitCode> {
    let config = ApiConfig::from_vars(&EnvVars).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let telemetry = Telemetry::start("ballast-api", &config.runtime);
    let metrics = telemetry.metrics();
    Ok(runtime::run(config.runtime.shutdown, telemetry, async |lifecycle| {
        let http = config.runtime.http.clone();
        let listener = server::bind(http.host, http.port)?;
        let state = api::AppState::from_config(config, lifecycle.clone(), Clock::system(), metrics)?;
        // What a session is told.
        let (user_id, session_id) = (Uuid::now_v7(), Uuid::now_v7());
        let answer = json!({ "user_id": user_id, "role": "admin", "session_id": session_id });
        let whoami = Router::new().route("/v1/whoami", get(async move || Json(answer.clone())));
        let router = api::without_gate(state, whoami);
        lifecycle.spawn("http server", server::serve(listener, router, http, lifecycle.clone()));
        anyhow::Ok(())
    }))
}
