//! `usage_rollup`: adds usage events up to hours.
//!
//! To delete it: see "Usage roll-up" in `docs/removing-parts.md`. `GET /v1/usage` stays right without it, and gets slower with
//! every event.

use job_specs::UsageRollup;
use jobs::{JobContext, JobError};
use serde::Serialize;

use crate::Context;

/// Events in one transaction: short enough that nobody waits for it.
const BATCH: i64 = 5_000;

/// What the job reports.
#[derive(Debug, Serialize)]
struct RolledUp {
    events: i64,
}

/// Each batch counts its events and marks them in one transaction, so an attempt that dies half-way leaves nothing counted
/// twice. The last batch completes the job in the same transaction.
pub async fn run(context: Context, attempt: JobContext, _: UsageRollup) -> Result<(), JobError> {
    let mut events = 0;
    loop {
        let batch = async |c: &mut db::PgConnection| -> Result<i64, JobError> {
            let n = db::usage::roll_up(c, BATCH).await?;
            if n < BATCH {
                attempt.complete_in(c, &RolledUp { events: events + n }).await?;
            }
            Ok(n)
        };
        let n = context.database.transaction("usage.roll_up", batch).await?;
        events += n;
        if n < BATCH {
            tracing::info!(events, "usage rolled up");
            return Ok(());
        }
        if attempt.cancelled().is_cancelled() {
            return Err(anyhow::anyhow!("stopped after {events} events").into());
        }
        attempt.progress(events.unsigned_abs(), 0, Some("events so far")).await;
    }
}
