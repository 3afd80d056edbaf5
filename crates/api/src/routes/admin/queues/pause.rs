//! `POST /v1/admin/queues/{name}/pause`.

use axum::extract::State;

use super::super::actor;
use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path},
    operator::{self, QueueStatus},
};

/// Holds a queue up: nothing of it is begun until it is resumed; what runs goes on.
#[utoipa::path(post, path = "/v1/admin/queues/{name}/pause", tag = "admin", security(("bearer" = [])),
    params(("name" = String, Path)),
    responses((status = 200, body = QueueStatus), (status = 403, body = Problem)))]
pub(super) async fn pause(
    State(state): State<AppState>,
    admin: Admin,
    Path(name): Path<String>,
) -> Result<Json<QueueStatus>> {
    let actor = actor(&admin);
    let set = async |c: &mut db::PgConnection| operator::set_paused(c, &name, true, &actor).await;
    Ok(Json(state.database.transaction("jobs.pause", set).await?))
}
