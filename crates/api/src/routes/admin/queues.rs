//! `GET /v1/admin/queues`.

use axum::extract::State;
use serde_json::{Value, json};

use crate::{AppState, Error, Result, admission::Admin, error::Problem, extract::Json};

/// Every queue: what waits, what runs, and how long the oldest has been waiting.
#[utoipa::path(get, path = "/v1/admin/queues", tag = "admin", security(("bearer" = [])),
    responses((status = 200, body = Value), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn queues(State(state): State<AppState>, _: Admin) -> Result<Json<Value>> {
    let queues =
        state.database.call("jobs.queues", async |c| jobs::queues(c).await.map_err(Error::from)).await?;
    Ok(Json(json!({ "data": queues })))
}
