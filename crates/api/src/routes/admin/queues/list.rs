//! `GET /v1/admin/queues`.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::Json,
    operator::{self, QueueStatus},
};

#[derive(Serialize, ToSchema)]
pub(super) struct Queues {
    data: Vec<QueueStatus>,
}

/// Every queue: what waits, what runs, and how long the oldest has been waiting.
#[utoipa::path(get, path = "/v1/admin/queues", tag = "admin", security(("bearer" = [])),
    responses((status = 200, body = Queues), (status = 403, body = Problem)))]
pub(super) async fn list(State(state): State<AppState>, _: Admin) -> Result<Json<Queues>> {
    let data = state.database.call("jobs.queues", async |c| operator::queues(c).await).await?;
    Ok(Json(Queues { data }))
}
