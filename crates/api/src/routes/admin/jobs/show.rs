//! `GET /v1/admin/jobs/{id}`.

use axum::extract::State;

use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path},
    operator::{self, JobDetails},
};

/// A job with its payload, progress, result and errors.
#[utoipa::path(get, path = "/v1/admin/jobs/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses((status = 200, body = JobDetails), (status = 403, body = Problem)))]
pub(super) async fn show(
    State(state): State<AppState>,
    _: Admin,
    Path(id): Path<i64>,
) -> Result<Json<JobDetails>> {
    Ok(Json(state.database.call("jobs.find", async |c| operator::show(c, id).await).await?))
}
