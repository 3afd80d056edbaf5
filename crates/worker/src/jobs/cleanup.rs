//! `cleanup`: deletes what has expired.
//!
//! It is part of the core: sessions, tokens and the queue's own leftovers go here. A part that is removed takes its lines along.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use job_specs::Cleanup;
use jobs::{JobContext, JobError};
use serde::Serialize;

use crate::Context;

/// Ended sessions are kept so long, so that the reuse of an old token is still recognised and told.
const SESSIONS_KEPT: TimeDelta = TimeDelta::days(30);
/// Longer than any sender sends an event again, and any delivery is tried.
const WEBHOOKS_KEPT: TimeDelta = TimeDelta::days(30);
/// Runs that ended are kept so long; their events are gone before.
const RUNS_KEPT: TimeDelta = TimeDelta::days(30);
/// Expired one-time tokens are kept so long, so that an operator can see what happened.
const TOKENS_KEPT: TimeDelta = TimeDelta::days(7);
/// Rows in one statement where there may be many: nobody waits long for it, and it ends before the call's deadline.
const BATCH: i64 = 5_000;

/// How many rows went.
#[derive(Debug, Serialize)]
pub struct Deleted {
    runs: u64,
    sessions: u64,
    one_time_tokens: u64,
    webhooks: u64,
    audit_log: u64,
    usage_events: u64,
    queue: u64,
}

/// Each part is a call of its own: what is deleted stays deleted when a later part fails.
pub async fn run(context: Context, attempt: JobContext, _: Cleanup) -> Result<Deleted, JobError> {
    let now = runtime::Clock::system().now();
    let database = &context.database;
    let before = now - SESSIONS_KEPT;
    let sessions =
        database.call("sessions.delete_ended", async |c| db::sessions::delete_ended(c, before).await).await?;
    let before = now - TOKENS_KEPT;
    let one_time_tokens = database
        .call("one_time_tokens.delete_expired", async |c| {
            db::one_time_tokens::delete_expired(c, before).await
        })
        .await?;
    let before = now - WEBHOOKS_KEPT;
    let delete = async |c: &mut db::PgConnection| -> db::Result<u64> {
        let events = db::webhook_events::delete_processed(c, before).await?;
        Ok(events + db::webhook_deliveries::delete_old(c, before).await?)
    };
    let webhooks = database.call("webhooks.delete_old", delete).await?;
    runs::end_lost(database, &context.run_events, &context.limiter, None).await?;
    let before = now - RUNS_KEPT;
    let runs = database.call("runs.delete_ended", async |c| db::runs::delete_ended(c, before).await).await?;
    let audit_log = audit_log(&context, &attempt, ago(now, context.config.retention.audit_log)).await?;
    let usage_events =
        usage_events(&context, &attempt, ago(now, context.config.retention.usage_events)).await?;
    let queue = database.call("jobs.prune", async |c| Ok::<_, JobError>(jobs::prune(c).await?)).await?;
    tracing::info!(runs, sessions, one_time_tokens, webhooks, audit_log, usage_events, queue, "cleaned up");
    Ok(Deleted { runs, sessions, one_time_tokens, webhooks, audit_log, usage_events, queue })
}

async fn audit_log(context: &Context, attempt: &JobContext, before: DateTime<Utc>) -> Result<u64, JobError> {
    let mut deleted = 0;
    loop {
        let delete = async |c: &mut db::PgConnection| db::audit::delete_old(c, before, BATCH).await;
        let n = context.database.call("audit.delete_old", delete).await?;
        deleted += n;
        if was_last(attempt, n, deleted)? {
            return Ok(deleted);
        }
    }
}

async fn usage_events(
    context: &Context,
    attempt: &JobContext,
    before: DateTime<Utc>,
) -> Result<u64, JobError> {
    let mut deleted = 0;
    loop {
        let delete = async |c: &mut db::PgConnection| db::usage::delete_counted(c, before, BATCH).await;
        let n = context.database.call("usage.delete_counted", delete).await?;
        deleted += n;
        if was_last(attempt, n, deleted)? {
            return Ok(deleted);
        }
    }
}

/// A batch that is not full is the last one. An error when the job is to stop before that.
fn was_last(attempt: &JobContext, batch: u64, deleted: u64) -> Result<bool, JobError> {
    if batch < BATCH.unsigned_abs() {
        return Ok(true);
    }
    if attempt.cancelled().is_cancelled() {
        return Err(anyhow::anyhow!("stopped after {deleted} rows").into());
    }
    Ok(false)
}

fn ago(now: DateTime<Utc>, kept: Duration) -> DateTime<Utc> {
    // The configuration keeps it below ten years.
    now - TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX)
}
