//! Looking at jobs, live and finished.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Error, JobId, Priority};

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waiting for its time or for a free worker.
    Ready,
    /// A worker holds it.
    Running,
    /// Done; `result` says what came out.
    Completed,
    /// Given up; `errors` says why.
    Discarded,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// As it is written in the database, the API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Discarded => "discarded",
            Self::Cancelled => "cancelled",
        }
    }

    /// True when nothing will change any more.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Ready | Self::Running)
    }

    fn from_db(text: &str) -> Self {
        match text {
            "running" => Self::Running,
            "completed" => Self::Completed,
            "discarded" => Self::Discarded,
            "cancelled" => Self::Cancelled,
            _ => Self::Ready,
        }
    }
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Which attempt, from 1.
    pub attempt: i16,
    /// When it failed.
    pub at: DateTime<Utc>,
    /// The error with its causes.
    pub error: String,
}

/// How far a running job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0 when nobody knows.
    pub total: u64,
    /// What it is doing now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A job as the API shows it, live or finished.
#[derive(Debug, Clone, Serialize)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: String,
    /// Where it waits.
    pub queue: String,
    /// Who goes first.
    pub priority: Priority,
    /// Where it is.
    pub state: JobState,
    /// The payload.
    pub args: Value,
    /// What came out, when completed.
    pub result: Option<Value>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// Attempts begun so far.
    pub attempt: i16,
    /// After so many it is discarded.
    pub max_attempts: i16,
    /// The last ten failures, oldest first.
    pub errors: Vec<Failure>,
    /// Somebody asked to cancel it while it runs.
    pub cancel_requested: bool,
    /// Whose job it is; none for the system's own.
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

struct Row {
    id: i64,
    kind: String,
    queue: String,
    priority: i16,
    state: String,
    args: Value,
    result: Option<Value>,
    progress: Option<Value>,
    attempt: i16,
    max_attempts: i16,
    errors: Value,
    cancel_requested: bool,
    owner: Option<Uuid>,
    created_at: DateTime<Utc>,
    run_at: DateTime<Utc>,
    claimed_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl From<Row> for JobView {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            kind: row.kind,
            queue: row.queue,
            priority: Priority::from_db(row.priority),
            state: JobState::from_db(&row.state),
            args: row.args,
            result: row.result,
            progress: row.progress.and_then(|p| serde_json::from_value(p).ok()),
            attempt: row.attempt,
            max_attempts: row.max_attempts,
            errors: serde_json::from_value(row.errors).unwrap_or_default(),
            cancel_requested: row.cancel_requested,
            owner: row.owner,
            created_at: row.created_at,
            run_at: row.run_at,
            started_at: row.claimed_at,
            finished_at: row.finished_at,
        }
    }
}

/// The job with this id, live or finished, until its retention is over.
pub async fn find(conn: &mut PgConnection, id: JobId) -> Result<Option<JobView>, Error> {
    // A statement that waits while partitions are made has a plan of before and a snapshot of after: it looks for the job where
    // it was. So what is not found is looked for once more.
    match find_once(&mut *conn, id).await? {
        None => find_once(conn, id).await,
        found => Ok(found),
    }
}

async fn find_once(conn: &mut PgConnection, id: JobId) -> Result<Option<JobView>, Error> {
    // One statement, one snapshot: a job that finishes meanwhile is seen in exactly one of the two tables.
    let row = sqlx::query_as!(
        Row,
        r#"select id as "id!", kind as "kind!", queue as "queue!", priority as "priority!", state as "state!",
                  args as "args!", null::jsonb as result, progress, attempt as "attempt!",
                  max_attempts as "max_attempts!", errors as "errors!", cancel_requested as "cancel_requested!",
                  owner, created_at as "created_at!", run_at as "run_at!", claimed_at, null::timestamptz as finished_at
           from job where id = $1
           union all
           select id, kind, queue, priority, state, args, result, progress, attempt, max_attempts, errors, false,
                  owner, created_at, run_at, claimed_at, finished_at
           from job_done where id = $1"#,
        id
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(JobView::from))
}

/// Which jobs to list. Everything that is `None` matches all.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// In this state.
    pub state: Option<JobState>,
    /// Of this kind.
    pub kind: Option<String>,
    /// In this queue.
    pub queue: Option<String>,
    /// Of this user.
    pub owner: Option<Uuid>,
    /// Older than this one: the last id of the previous page.
    pub before: Option<JobId>,
    /// At most so many, up to 1 000; 50 when zero.
    pub limit: u16,
}

/// Lists jobs, newest first.
pub async fn list(conn: &mut PgConnection, filter: &ListFilter) -> Result<Vec<JobView>, Error> {
    let limit = if filter.limit == 0 { 50 } else { i64::from(filter.limit.min(1_000)) };
    let rows = sqlx::query_as!(
        Row,
        r#"select id as "id!", kind as "kind!", queue as "queue!", priority as "priority!", state as "state!",
                  args as "args!", result, progress, attempt as "attempt!", max_attempts as "max_attempts!",
                  errors as "errors!", cancel_requested as "cancel_requested!", owner, created_at as "created_at!",
                  run_at as "run_at!", claimed_at, finished_at
           from (
               (select id, kind, queue, priority, state, args, null::jsonb as result, progress, attempt, max_attempts,
                       errors, cancel_requested, owner, created_at, run_at, claimed_at,
                       null::timestamptz as finished_at
                from job
                where ($1::text is null or state = $1) and ($2::text is null or kind = $2)
                  and ($3::text is null or queue = $3) and ($4::uuid is null or owner = $4)
                  and ($5::bigint is null or id < $5)
                order by id desc limit $6)
               union all
               (select id, kind, queue, priority, state, args, result, progress, attempt, max_attempts,
                       errors, false, owner, created_at, run_at, claimed_at, finished_at
                from job_done
                where ($1::text is null or state = $1) and ($2::text is null or kind = $2)
                  and ($3::text is null or queue = $3) and ($4::uuid is null or owner = $4)
                  and ($5::bigint is null or id < $5)
                order by id desc limit $6)
           ) as both_tables
           order by id desc limit $6"#,
        filter.state.map(JobState::as_str),
        filter.kind,
        filter.queue,
        filter.owner,
        filter.before,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(JobView::from).collect())
}
