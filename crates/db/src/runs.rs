//! Resumable runs: which there are, and what became of them. Their events are in Redis.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Result,
    usage::{self, UsageEvent},
};

/// The route under which usage of runs is recorded.
const ROUTE: &str = "/v1/runs";

/// A run to be made.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Identifier.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// With which key, if with one.
    pub api_key_id: Option<Uuid>,
    /// In which request.
    pub request_id: String,
    /// The job that makes it.
    pub job_id: i64,
    /// Of which model.
    pub model: String,
    /// The body as it goes to the engine.
    pub request: Vec<u8>,
    /// What it holds of the limits.
    pub held: Value,
    /// About so many tokens are read.
    pub prompt_estimate: i64,
}

/// Adds a run that waits.
pub async fn insert(c: &mut PgConnection, new: &NewRun) -> Result<()> {
    sqlx::query!(
        "insert into run (id, user_id, api_key_id, request_id, job_id, model, request, held, prompt_estimate)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        new.id,
        new.user_id,
        new.api_key_id,
        new.request_id,
        new.job_id,
        new.model,
        new.request,
        new.held,
        new.prompt_estimate,
    )
    .execute(c)
    .await?;
    Ok(())
}

/// A run, as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Identifier.
    pub id: Uuid,
    /// The job that makes it.
    pub job_id: i64,
    /// Of which model.
    pub model: String,
    /// `queued`, `running`, `completed`, `failed` or `stopped`.
    pub state: String,
    /// How often it was begun.
    pub attempts: i32,
    /// Why it failed.
    pub error_code: Option<String>,
    /// The same in words.
    pub error_message: Option<String>,
    /// Tokens read, when it has ended.
    pub prompt_tokens: Option<i64>,
    /// Tokens written, when it has ended.
    pub completion_tokens: Option<i64>,
    /// True when the counts are ours and not the engine's.
    pub estimated: Option<bool>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it was first begun.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// Its job waits or runs.
    pub has_job: bool,
}

/// A run of this user.
pub async fn find(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<Option<Run>> {
    let run = sqlx::query_as!(
        Run,
        r#"select id, job_id, model, state, attempts, error_code, error_message, prompt_tokens, completion_tokens,
                  estimated, created_at, started_at, ended_at,
                  exists (select from job where job.id = run.job_id) as "has_job!"
           from run where user_id = $1 and id = $2"#,
        user_id,
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(run)
}

/// How many runs of this user wait or run.
pub async fn count_open(c: &mut PgConnection, user_id: Uuid) -> Result<i64> {
    let count = sqlx::query_scalar!(
        r#"select count(*) as "count!" from run where user_id = $1 and ended_at is null"#,
        user_id
    )
    .fetch_one(c)
    .await?;
    Ok(count)
}

/// A run that is begun.
#[derive(Debug, Clone)]
pub struct Begun {
    /// Of which model.
    pub model: String,
    /// In which request it was asked for.
    pub request_id: String,
    /// The body as it goes to the engine.
    pub request: Vec<u8>,
    /// What it holds of the limits.
    pub held: Value,
    /// About so many tokens are read.
    pub prompt_estimate: i64,
    /// How often it was begun, this time included.
    pub attempts: i32,
}

/// Notes that a run is begun; `None` when it has ended, or there is none.
pub async fn begin(c: &mut PgConnection, id: Uuid) -> Result<Option<Begun>> {
    let begun = sqlx::query_as!(
        Begun,
        r#"update run set state = 'running', attempts = attempts + 1, started_at = coalesce(started_at, now())
           where id = $1 and ended_at is null
           returning model, request_id, request as "request!", held, prompt_estimate, attempts"#,
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(begun)
}

/// How a run ended.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// `completed`, `failed` or `stopped`.
    pub state: &'static str,
    /// Why it failed: a stable name.
    pub error_code: Option<String>,
    /// The same in words.
    pub error_message: Option<String>,
    /// The usage row's: `ok`, `client_abort`, `engine_error`, `timeout` or `drained`.
    pub outcome: &'static str,
    /// The engine that was asked last.
    pub engine: Option<String>,
    /// Tokens read and written, as far as anybody knows.
    pub tokens: Option<(i64, i64)>,
    /// The counts are ours and not the engine's.
    pub estimated: bool,
    /// Until the first event.
    pub first_token_ms: Option<i32>,
    /// From the begin of the last attempt.
    pub duration_ms: i32,
}

/// A run that was ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What it held of the limits.
    pub held: Value,
    /// How often it was begun.
    pub attempts: i32,
    /// Tokens read and written.
    pub tokens: (i64, i64),
}

/// Ends a run, and records what it used; `None` when it had ended before. Call it in a transaction: only one of those who
/// try gets to record usage.
///
/// Without counts, a run that was begun is taken to have read its prompt, and one that waited has used nothing.
pub async fn end(c: &mut PgConnection, id: Uuid, end: &End) -> Result<Option<Ended>> {
    let (prompt, completion) = end.tokens.unzip();
    let row = sqlx::query!(
        r#"update run set state = $2, error_code = $3, error_message = $4, ended_at = now(), request = null,
               prompt_tokens = coalesce($5, case when attempts > 0 then prompt_estimate else 0 end),
               completion_tokens = coalesce($6::bigint, 0), estimated = $7
           where id = $1 and ended_at is null
           returning user_id, api_key_id, request_id, model, held, attempts, prompt_tokens as "prompt!",
                     completion_tokens as "completion!", ended_at as "ended_at!""#,
        id,
        end.state,
        end.error_code,
        end.error_message,
        prompt,
        completion,
        end.estimated,
    )
    .fetch_optional(&mut *c)
    .await?;
    let Some(row) = row else { return Ok(None) };
    if row.attempts > 0 {
        let event = UsageEvent {
            id,
            occurred_at: row.ended_at,
            user_id: row.user_id,
            api_key_id: row.api_key_id,
            request_id: row.request_id,
            route: ROUTE.to_owned(),
            model: row.model,
            engine: end.engine.clone().unwrap_or_else(|| "default".to_owned()),
            prompt_tokens: row.prompt,
            completion_tokens: row.completion,
            estimated: end.estimated,
            cached: false,
            outcome: end.outcome,
            first_token_ms: end.first_token_ms,
            duration_ms: end.duration_ms,
        };
        usage::insert(c, &[event]).await?;
    }
    Ok(Some(Ended { held: row.held, attempts: row.attempts, tokens: (row.prompt, row.completion) }))
}

/// A run that nobody will end: its job is over.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// Which.
    pub id: Uuid,
    /// Somebody cancelled its job. Otherwise its workers died, one after the other.
    pub cancelled: bool,
}

/// Runs that have not ended although their job is over: this one, or all.
pub async fn lost(c: &mut PgConnection, only: Option<Uuid>) -> Result<Vec<Lost>> {
    let lost = sqlx::query_as!(
        Lost,
        r#"select id, exists (select from job_done d where d.id = run.job_id and d.state = 'cancelled') as "cancelled!"
           from run
           where ended_at is null and coalesce(id = $1, true)
             and not exists (select from job where job.id = run.job_id)
           limit 1000"#,
        only
    )
    .fetch_all(c)
    .await?;
    Ok(lost)
}

/// Deletes runs that ended before `before`. Returns how many.
pub async fn delete_ended(c: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let done = sqlx::query!("delete from run where ended_at < $1", before).execute(c).await?;
    Ok(done.rows_affected())
}
