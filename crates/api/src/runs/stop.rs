//! `DELETE /v1/runs/{id}`.

use axum::extract::State;
use uuid::Uuid;

use super::{RunBody, SCOPE, find};
use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
};

/// Stops one of your runs, within a second, wherever it runs; what it said so far can be read. Asked twice, or of a run that has
/// ended, it does nothing.
#[utoipa::path(delete, path = "/v1/runs/{id}", tag = "runs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The run as it is now: `running` until its worker has heard of it", body = RunBody),
              (status = 403, body = Problem)))]
pub(super) async fn stop(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<RunBody>> {
    caller.require_scope(SCOPE)?;
    let run = find(&state, &caller, id).await?;
    if run.ended_at.is_none() {
        let cancel = async |c: &mut db::PgConnection| jobs::cancel(c, run.job_id).await.map_err(Error::from);
        state.database.call("jobs.cancel", cancel).await?;
    }
    // A job that waited is cancelled now, and nobody else would end its run.
    Ok(Json(find(&state, &caller, id).await?.into()))
}
