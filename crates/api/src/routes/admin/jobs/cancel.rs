//! `POST /v1/admin/jobs/{id}/cancel`.

use axum::extract::State;

use super::super::actor;
use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path},
    operator::{self, JobDetails},
};

/// Cancels a job: at once when it waits; when it runs its worker is asked, and the answer says `cancel_requested`.
#[utoipa::path(post, path = "/v1/admin/jobs/{id}/cancel", tag = "admin", security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses((status = 200, body = JobDetails), (status = 403, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn cancel(
    State(state): State<AppState>,
    admin: Admin,
    Path(id): Path<i64>,
) -> Result<Json<JobDetails>> {
    let actor = actor(&admin);
    let cancel = async |c: &mut db::PgConnection| operator::cancel(c, id, &actor).await;
    Ok(Json(state.database.transaction("jobs.cancel", cancel).await?))
}
