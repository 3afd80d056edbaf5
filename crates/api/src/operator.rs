//! What operators see of the queue and do to it: the same for `/v1/admin` and for `ballast jobs`.
//!
//! Everything that changes something leaves a line in the audit log, in the same transaction.

use std::time::Duration;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use db::{PgConnection, audit::Event};
use job_specs::NewJobError;
use jobs::{Cancelled, CronView, EnqueueOptions, JobId, JobView, ListFilter, Priority, QueueView};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{Error, Result};

/// The largest page of jobs.
pub const MAX_PAGE: u16 = 200;

/// A job with everything that is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobDetails {
    /// A number, as text: JavaScript loses the digits of large ones.
    pub id: String,
    /// What it does.
    pub kind: String,
    /// Where it waits.
    pub queue: String,
    /// `urgent`, `high`, `normal` or `low`.
    #[schema(value_type = String)]
    pub priority: Priority,
    /// `ready`, `running`, `completed`, `discarded` or `cancelled`.
    pub state: &'static str,
    /// The payload, without what is private in it.
    pub args: Value,
    /// What came out, when completed.
    pub result: Option<Value>,
    /// How far it is, where the job says so.
    pub progress: Option<JobProgress>,
    /// Attempts begun so far.
    pub attempt: i16,
    /// After so many it is discarded.
    pub max_attempts: i16,
    /// The last ten failures, oldest first.
    pub errors: Vec<JobFailure>,
    /// Somebody asked to cancel it while it runs.
    pub cancel_requested: bool,
    /// The user whose job it is; none for the system's own.
    pub owner: Option<Uuid>,
    /// When it was enqueued.
    pub created_at: DateTime<Utc>,
    /// When it is due (again).
    pub run_at: DateTime<Utc>,
    /// When the last attempt began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was completed, discarded or cancelled.
    pub finished_at: Option<DateTime<Utc>>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobProgress {
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0 when nobody knows.
    pub total: u64,
    /// What it is doing now.
    pub note: Option<String>,
}

impl From<jobs::Progress> for JobProgress {
    fn from(progress: jobs::Progress) -> Self {
        Self { done: progress.done, total: progress.total, note: progress.note }
    }
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct JobFailure {
    /// Which attempt, from 1.
    pub attempt: i16,
    /// When.
    pub at: DateTime<Utc>,
    /// The error with its causes.
    pub error: String,
}

impl From<jobs::Failure> for JobFailure {
    fn from(failure: jobs::Failure) -> Self {
        Self { attempt: failure.attempt, at: failure.at, error: failure.error }
    }
}

impl From<JobView> for JobDetails {
    fn from(job: JobView) -> Self {
        Self {
            id: job.id.to_string(),
            args: job_specs::shown_args(&job.kind, job.args),
            kind: job.kind,
            queue: job.queue,
            priority: job.priority,
            state: job.state.as_str(),
            result: job.result,
            progress: job.progress.map(JobProgress::from),
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            errors: job.errors.into_iter().map(JobFailure::from).collect(),
            cancel_requested: job.cancel_requested,
            owner: job.owner,
            created_at: job.created_at,
            run_at: job.run_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
        }
    }
}

/// One page of jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobPage {
    /// The jobs.
    pub data: Vec<JobDetails>,
    /// Ask for the next page with this as `before`; none when this was the last one.
    pub next: Option<String>,
}

/// How a queue is doing.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// Since when nothing of it is claimed.
    pub paused_at: Option<DateTime<Utc>>,
    /// Due and waiting; counted up to 10 000.
    pub ready: i64,
    /// Waiting for their time; counted up to 10 000.
    pub scheduled: i64,
    /// Held by workers.
    pub running: i64,
    /// How long the oldest due job has been waiting, in seconds.
    pub oldest_ready_seconds: f64,
}

impl From<QueueView> for QueueStatus {
    fn from(queue: QueueView) -> Self {
        Self {
            name: queue.name,
            paused_at: queue.paused_at,
            ready: queue.ready,
            scheduled: queue.scheduled,
            running: queue.running,
            oldest_ready_seconds: queue.oldest_ready_seconds,
        }
    }
}

/// A cron line, and its last and next tick.
#[derive(Debug, Serialize, ToSchema)]
pub struct CronStatus {
    /// Its name.
    pub name: String,
    /// The expression.
    pub schedule: String,
    /// The time zone in which it is read.
    pub timezone: String,
    /// What happens with missed ticks: `skip`, `one` or `all`.
    pub catch_up: String,
    /// The kind of job it enqueues.
    pub kind: String,
    /// The last tick that was decided.
    pub last_tick: Option<DateTime<Utc>>,
    /// The job of that tick; none when the tick was skipped.
    pub last_job: Option<String>,
    /// The next tick; none when the line never fires again.
    pub next_tick: Option<DateTime<Utc>>,
    /// When a worker last had this line in its table: long ago means that it was removed from the code.
    pub seen_at: DateTime<Utc>,
}

impl From<CronView> for CronStatus {
    fn from(line: CronView) -> Self {
        Self {
            name: line.name,
            schedule: line.schedule,
            timezone: line.timezone,
            catch_up: line.catch_up,
            kind: line.kind,
            last_tick: line.last_tick,
            last_job: line.last_job.map(|id| id.to_string()),
            next_tick: line.next_tick,
            seen_at: line.seen_at,
        }
    }
}

/// A job to be enqueued.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"kind": "cleanup"}))]
pub struct Enqueue {
    /// Which kind; any that this build knows.
    pub kind: String,
    /// What the kind needs; without this nothing.
    #[serde(default = "nothing")]
    pub args: Value,
    /// Another queue than the kind's own.
    pub queue: Option<String>,
    /// `urgent`, `high`, `normal` or `low`; without this the kind's own.
    #[schema(value_type = Option<String>)]
    pub priority: Option<Priority>,
    /// When; without this, or in the past, at once.
    pub run_at: Option<DateTime<Utc>>,
    /// So many seconds from now, or after `run_at`.
    pub delay_seconds: Option<u32>,
    /// Another number of attempts than the kind's own.
    #[schema(minimum = 1)]
    pub max_attempts: Option<i16>,
}

fn nothing() -> Value {
    json!({})
}

/// Lists jobs, newest first.
pub async fn list(c: &mut PgConnection, mut filter: ListFilter) -> Result<JobPage> {
    if filter.limit == 0 || filter.limit > MAX_PAGE {
        return Err(Error::invalid("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    for (field, value) in [("kind", &filter.kind), ("queue", &filter.queue)] {
        if value.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(Error::invalid(field, "must not contain NUL"));
        }
    }
    let limit = usize::from(filter.limit);
    // One more than asked for tells whether there is another page.
    filter.limit += 1;
    let mut jobs = jobs::list(c, &filter).await?;
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let next = jobs.last().filter(|_| more).map(|job| job.id.to_string());
    Ok(JobPage { data: jobs.into_iter().map(JobDetails::from).collect(), next })
}

/// One job.
pub async fn show(c: &mut PgConnection, id: JobId) -> Result<JobDetails> {
    Ok(jobs::find(c, id).await?.ok_or_else(Error::not_found)?.into())
}

/// Runs a job again: one that failed for good or was cancelled starts over, one that waits is due now.
pub async fn retry(c: &mut PgConnection, id: JobId, actor: &Event<'_>) -> Result<JobDetails> {
    let done = jobs::retry(c, id).await?;
    let job = show(c, id).await?;
    if !done {
        let detail =
            format!("The job is {}: only one that waits, failed or was cancelled can run again.", job.state);
        return Err(Error::conflict("not_retryable", detail));
    }
    audit(c, "job_retried", actor, json!({ "job": job.id, "kind": job.kind })).await?;
    Ok(job)
}

/// Cancels a job: at once when it waits, by asking its worker when it runs.
pub async fn cancel(c: &mut PgConnection, id: JobId, actor: &Event<'_>) -> Result<JobDetails> {
    let outcome = jobs::cancel(c, id).await?;
    let job = show(c, id).await?;
    if outcome == Cancelled::NotLive {
        return Err(already_over(job.state));
    }
    audit(c, "job_cancelled", actor, json!({ "job": job.id, "kind": job.kind })).await?;
    Ok(job)
}

/// The answer to a cancellation that comes too late.
pub(crate) fn already_over(state: &str) -> Error {
    Error::conflict("not_cancellable", format!("The job is {state}: there is nothing to cancel any more."))
}

/// Enqueues a job of any kind that this build knows.
pub async fn enqueue(c: &mut PgConnection, new: Enqueue, actor: &Event<'_>) -> Result<JobDetails> {
    let options = EnqueueOptions {
        queue: new.queue,
        priority: new.priority,
        run_at: new.run_at,
        delay: new.delay_seconds.map(|seconds| Duration::from_secs(seconds.into())),
        max_attempts: new.max_attempts,
        ..EnqueueOptions::default()
    };
    if new.max_attempts.is_some_and(|n| n < 1) {
        return Err(Error::invalid("max_attempts", "must be at least 1"));
    }
    let job = job_specs::operator_job(&new.kind, new.args, options)
        .map_err(|error| refuse_job(error, job_specs::KINDS.iter().map(|kind| kind.name)))?;
    let id = job.insert(c).await?.id();
    let job = show(c, id).await?;
    audit(c, "job_enqueued", actor, json!({ "job": job.id, "kind": job.kind })).await?;
    Ok(job)
}

/// The 422 of a job that is not to be had.
pub(crate) fn refuse_job(error: NewJobError, kinds: impl Iterator<Item = &'static str>) -> Error {
    match error {
        NewJobError::UnknownKind => {
            let kinds: Vec<_> = kinds.collect();
            Error::invalid("kind", format!("there is no such kind; there are: {}", kinds.join(", ")))
        }
        NewJobError::InvalidPayload(text) => Error::invalid("args", text),
    }
}

/// All queues that a worker serves, that are paused, or that hold a job.
pub async fn queues(c: &mut PgConnection) -> Result<Vec<QueueStatus>> {
    Ok(jobs::queues(c).await?.into_iter().map(QueueStatus::from).collect())
}

/// Pauses a queue (nothing of it is claimed; what runs goes on) or resumes it.
pub async fn set_paused(
    c: &mut PgConnection,
    name: &str,
    paused: bool,
    actor: &Event<'_>,
) -> Result<QueueStatus> {
    // A queue that nobody knows is a typo, and pausing it would not do what was meant.
    let known = queues(c).await?;
    if !known.iter().any(|queue| queue.name == name) {
        let names: Vec<_> = known.into_iter().map(|queue| queue.name).collect();
        let detail = format!("There is no such queue; there are: {}.", names.join(", "));
        return Err(Error::new(StatusCode::NOT_FOUND, "not_found", detail));
    }
    if paused {
        jobs::pause_queue(c, name).await?;
    } else {
        jobs::resume_queue(c, name).await?;
    }
    let event = if paused { "queue_paused" } else { "queue_resumed" };
    audit(c, event, actor, json!({ "queue": name })).await?;
    queues(c).await?.into_iter().find(|queue| queue.name == name).ok_or_else(Error::not_found)
}

/// Every cron line with its last and next tick.
pub async fn cron(c: &mut PgConnection) -> Result<Vec<CronStatus>> {
    Ok(jobs::cron_lines(c).await?.into_iter().map(CronStatus::from).collect())
}

async fn audit(c: &mut PgConnection, event: &str, actor: &Event<'_>, detail: Value) -> Result<()> {
    let actor = actor.clone();
    Ok(db::audit::insert(c, &Event { event, detail, ..actor }).await?)
}
