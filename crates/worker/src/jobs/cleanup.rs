//! `cleanup`: deletes what has expired.

use chrono::TimeDelta;
use job_specs::Cleanup;
use jobs::{JobContext, JobError};
use serde::Serialize;

use crate::Context;

/// Ended sessions are kept so long, so that the reuse of an old token is still recognised and told.
const SESSIONS_KEPT: TimeDelta = TimeDelta::days(30);
/// Longer than any sender sends an event again, and any delivery is tried.
const WEBHOOKS_KEPT: TimeDelta = TimeDelta::days(30);

/// Expired one-time tokens are kept so long, so that an operator can see what happened.
const TOKENS_KEPT: TimeDelta = TimeDelta::days(7);

/// For questions about single requests; their sums by hour are kept for good.
const USAGE_EVENTS_KEPT: TimeDelta = TimeDelta::days(90);
/// Rows in one statement: short enough that nobody waits for it.
const BATCH: i64 = 5_000;

/// How many rows went.
#[derive(Debug, Serialize)]
pub struct Deleted {
    sessions: u64,
    one_time_tokens: u64,
    webhooks: u64,
    usage_events: u64,
    queue: u64,
}

/// Each part is a call of its own: what is deleted stays deleted when a later part fails.
pub async fn run(context: Context, attempt: JobContext, _: Cleanup) -> Result<Deleted, JobError> {
    let now = runtime::Clock::system().now();
    let (before, tokens_before) = (now - SESSIONS_KEPT, now - TOKENS_KEPT);
    let database = &context.database;
    let sessions =
        database.call("sessions.delete_ended", async |c| db::sessions::delete_ended(c, before).await).await?;
    let one_time_tokens = database
        .call("one_time_tokens.delete_expired", async |c| {
            db::one_time_tokens::delete_expired(c, tokens_before).await
        })
        .await?;
    let before = now - WEBHOOKS_KEPT;
    let delete = async |c: &mut db::PgConnection| -> db::Result<u64> {
        let events = db::webhook_events::delete_processed(c, before).await?;
        Ok(events + db::webhook_deliveries::delete_old(c, before).await?)
    };
    let webhooks = database.call("webhooks.delete_old", delete).await?;
    let before = now - USAGE_EVENTS_KEPT;
    let mut usage_events = 0;
    loop {
        let delete = async |c: &mut db::PgConnection| db::usage::delete_counted(c, before, BATCH).await;
        let deleted = database.call("usage.delete_counted", delete).await?;
        usage_events += deleted;
        // What is left is for the next time.
        if deleted < BATCH.unsigned_abs() || attempt.cancelled().is_cancelled() {
            break;
        }
    }
    let queue = database.call("jobs.prune", async |c| Ok::<_, JobError>(jobs::prune(c).await?)).await?;
    tracing::info!(sessions, one_time_tokens, webhooks, usage_events, queue, "cleaned up");
    Ok(Deleted { sessions, one_time_tokens, webhooks, usage_events, queue })
}
