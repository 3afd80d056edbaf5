//! `GET /v1/jobs/{id}`.

use axum::extract::State;

use super::{JobBody, find};
use crate::{
    AppState, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
};

/// One of your jobs: its state, progress, result and errors.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = i64, Path)),
    responses((status = 200, body = JobBody), (status = 403, body = Problem)))]
pub(super) async fn show(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<Json<JobBody>> {
    caller.require_scope("jobs")?;
    Ok(Json(find(&state, &caller, id).await?.into()))
}
