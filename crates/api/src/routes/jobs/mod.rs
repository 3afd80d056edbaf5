//! Jobs that users start and watch.

mod cancel;
mod create;
mod events;
mod show;

use chrono::{DateTime, Utc};
use jobs::JobView;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    AppState, Error, Result,
    admission::Caller,
    operator::{JobFailure, JobProgress},
};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create::create))
        .routes(routes!(show::show))
        .routes(routes!(cancel::cancel))
        .routes(routes!(events::events))
}

/// A job, as its owner sees it.
#[derive(Debug, Serialize, PartialEq, ToSchema)]
pub(super) struct JobBody {
    /// A number, as text: JavaScript loses the digits of large ones.
    id: String,
    kind: String,
    /// `ready`, `running`, `completed`, `discarded` or `cancelled`.
    state: &'static str,
    attempt: i16,
    max_attempts: i16,
    /// How far it is, where the job says so.
    progress: Option<JobProgress>,
    /// What came out, when completed.
    result: Option<serde_json::Value>,
    /// The last failures.
    errors: Vec<JobFailure>,
    /// It runs, and was asked to stop.
    cancel_requested: bool,
    created_at: DateTime<Utc>,
    run_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl From<JobView> for JobBody {
    fn from(job: JobView) -> Self {
        Self {
            id: job.id.to_string(),
            kind: job.kind,
            state: job.state.as_str(),
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            progress: job.progress.map(JobProgress::from),
            result: job.result,
            errors: job.errors.into_iter().map(JobFailure::from).collect(),
            cancel_requested: job.cancel_requested,
            created_at: job.created_at,
            run_at: job.run_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}

/// The caller's own job; somebody else's is as if it were not there.
async fn find(state: &AppState, caller: &Caller, id: i64) -> Result<JobView> {
    let job =
        state.database.call("jobs.find", async |c| jobs::find(c, id).await.map_err(Error::from)).await?;
    job.filter(|job| job.owner == Some(caller.user_id)).ok_or_else(Error::not_found)
}
