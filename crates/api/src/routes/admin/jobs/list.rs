//! `GET /v1/admin/jobs`.

use axum::extract::State;
use jobs::{JobId, JobState, ListFilter};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Query},
    operator::{self, JobPage},
};

/// Which jobs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// In this state.
    #[param(value_type = Option<String>, pattern = "^(ready|running|completed|discarded|cancelled)$")]
    state: Option<JobState>,
    /// Of this kind.
    kind: Option<String>,
    /// In this queue.
    queue: Option<String>,
    /// Older than the job with this id: `next` of the page before.
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,18}$")]
    before: Option<JobId>,
    /// At most so many, 1 to 200; without it 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// Jobs, newest first; finished ones as long as they are kept.
#[utoipa::path(get, path = "/v1/admin/jobs", tag = "admin", security(("bearer" = [])), params(Wanted),
    responses((status = 200, body = JobPage), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    State(state): State<AppState>,
    _: Admin,
    Query(wanted): Query<Wanted>,
) -> Result<Json<JobPage>> {
    let filter = ListFilter {
        state: wanted.state,
        kind: wanted.kind,
        queue: wanted.queue,
        owner: None,
        before: wanted.before,
        limit: wanted.limit.unwrap_or(50),
    };
    Ok(Json(state.database.call("jobs.list", async |c| operator::list(c, filter).await).await?))
}
