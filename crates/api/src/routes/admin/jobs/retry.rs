//! `POST /v1/admin/jobs/{id}/retry`.

use axum::extract::State;

use super::super::actor;
use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path},
    operator::{self, JobDetails},
};

/// Runs a job again: one that failed for good or was cancelled starts over under its id, one that waits is due now.
#[utoipa::path(post, path = "/v1/admin/jobs/{id}/retry", tag = "admin", security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses((status = 200, body = JobDetails), (status = 403, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn retry(
    State(state): State<AppState>,
    admin: Admin,
    Path(id): Path<i64>,
) -> Result<Json<JobDetails>> {
    let actor = actor(&admin);
    let retry = async |c: &mut db::PgConnection| operator::retry(c, id, &actor).await;
    Ok(Json(state.database.transaction("jobs.retry", retry).await?))
}
