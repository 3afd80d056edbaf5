//! `POST /v1/admin/queues/{name}/resume`.

use axum::extract::State;

use super::super::actor;
use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path},
    operator::{self, QueueStatus},
};

/// Lets a paused queue go on. A queue that is not paused stays as it is.
#[utoipa::path(post, path = "/v1/admin/queues/{name}/resume", tag = "admin", security(("bearer" = [])),
    params(("name" = String, Path)),
    responses((status = 200, body = QueueStatus), (status = 403, body = Problem)))]
pub(super) async fn resume(
    State(state): State<AppState>,
    admin: Admin,
    Path(name): Path<String>,
) -> Result<Json<QueueStatus>> {
    let actor = actor(&admin);
    let set = async |c: &mut db::PgConnection| operator::set_paused(c, &name, false, &actor).await;
    Ok(Json(state.database.transaction("jobs.resume", set).await?))
}
