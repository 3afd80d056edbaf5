//! `GET /v1/admin/cron`.

use axum::extract::State;
use serde_json::{Value, json};

use crate::{AppState, Error, Result, admission::Admin, error::Problem, extract::Json};

/// Every cron line with its last and next tick.
#[utoipa::path(get, path = "/v1/admin/cron", tag = "admin", security(("bearer" = [])),
    responses((status = 200, body = Value), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn cron(State(state): State<AppState>, _: Admin) -> Result<Json<Value>> {
    let lines = state
        .database
        .call("jobs.cron_lines", async |c| jobs::cron_lines(c).await.map_err(Error::from))
        .await?;
    Ok(Json(json!({ "data": lines })))
}
