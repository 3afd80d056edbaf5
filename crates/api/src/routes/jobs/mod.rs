//! Jobs that users start and watch.

mod create;
mod events;
mod show;

use chrono::{DateTime, Utc};
use jobs::JobView;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{AppState, Error, Result, admission::Caller};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create::create))
        .routes(routes!(show::show))
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
    progress: Option<serde_json::Value>,
    /// What came out, when completed.
    result: Option<serde_json::Value>,
    /// The last failures.
    errors: Vec<serde_json::Value>,
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
            progress: job.progress.and_then(|p| serde_json::to_value(p).ok()),
            result: job.result,
            errors: job.errors.iter().filter_map(|e| serde_json::to_value(e).ok()).collect(),
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
