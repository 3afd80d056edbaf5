//! `POST /v1/jobs/{id}/cancel`.

use axum::extract::State;
use jobs::Cancelled;

use super::{JobBody, find};
use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
    operator::already_over,
};

/// Cancels one of your jobs: at once when it waits; a running one is asked to stop, and is cancelled when it has.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", tag = "jobs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = i64, Path)),
    responses((status = 200, body = JobBody), (status = 403, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<Json<JobBody>> {
    caller.require_scope("jobs")?;
    // A job's owner never changes, so this may be looked at apart from the cancellation.
    find(&state, &caller, id).await?;
    let outcome =
        state.database.call("jobs.cancel", async |c| jobs::cancel(c, id).await.map_err(Error::from)).await?;
    let job = JobBody::from(find(&state, &caller, id).await?);
    if outcome == Cancelled::NotLive { Err(already_over(job.state)) } else { Ok(Json(job)) }
}
