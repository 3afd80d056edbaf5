//! `GET /v1/admin/cron`.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::Json,
    operator::{self, CronStatus},
};

#[derive(Serialize, ToSchema)]
pub(super) struct CronLines {
    data: Vec<CronStatus>,
}

/// Every cron line with its last and next tick.
#[utoipa::path(get, path = "/v1/admin/cron", tag = "admin", security(("bearer" = [])),
    responses((status = 200, body = CronLines), (status = 403, body = Problem)))]
pub(super) async fn cron(State(state): State<AppState>, _: Admin) -> Result<Json<CronLines>> {
    let data = state.database.call("jobs.cron_lines", async |c| operator::cron(c).await).await?;
    Ok(Json(CronLines { data }))
}
