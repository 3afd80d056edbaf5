//! How a large change of data is done: in batches, with a cursor in the database, beside ordinary work.
//!
//! A migration must be quick, because the deploy waits for it and its locks are everybody's. So a migration adds the column,
//! the code fills it in for new rows, and a job fills in the rest. [`run`] is that job but for the batch itself:
//!
//! - Batch and cursor are one transaction. Whatever dies, the next attempt goes on behind the last batch that was committed.
//! - Two that run at the same time take turns: the cursor's row is locked.
//! - After each batch it rests as long as the batch took, so that it takes half of what one connection can do at most.
//! - `ballast jobs enqueue NAME` starts it, `ballast jobs cancel ID` stops it, enqueueing it again goes on where it was.
//!   When it is finished, it does nothing any more; with `{"again": true}` it begins anew.
//!
//! `jobs/backfill_event_types.rs` is one to copy. Delete a backfill in the release after the one in which it has finished.

use std::time::Duration;

use anyhow::anyhow;
use db::{PgConnection, backfills};
use jobs::{JobContext, JobError};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::Context;

/// The shortest rest.
const REST: Duration = Duration::from_millis(25);

/// What a batch did.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The last row of it; the next batch begins behind it.
    pub cursor: Value,
    /// How many rows it looked at.
    pub rows: i64,
}

/// What the job reports.
#[derive(Debug, Serialize)]
struct Finished {
    rows: i64,
}

/// Does batch after batch, until one finds nothing. `table` is where the rows are, for the progress.
pub(crate) async fn run(
    context: &Context,
    attempt: &JobContext,
    table: &str,
    again: bool,
    batch: impl AsyncFn(&mut PgConnection, Option<Value>) -> Result<Option<Batch>, JobError>,
) -> Result<(), JobError> {
    let (database, name, job) = (&context.database, attempt.kind(), attempt.id());
    let total = database
        .transaction("backfills.begin", async |c| {
            backfills::begin(c, name, job, again).await?;
            backfills::estimate_rows(c, table).await
        })
        .await?;
    loop {
        let begun = Instant::now();
        let step = async |c: &mut PgConnection| -> Result<Option<i64>, JobError> {
            let position = backfills::lock(c, name).await?;
            let done = if position.finished { None } else { batch(c, position.cursor).await? };
            let Some(done) = done else {
                if !position.finished {
                    backfills::advance(c, name, None, 0).await?;
                }
                attempt.complete_in(c, &Finished { rows: position.rows_done }).await?;
                return Ok(None);
            };
            backfills::advance(c, name, Some(&done.cursor), done.rows).await?;
            Ok(Some(position.rows_done + done.rows))
        };
        let Some(rows) = database.transaction("backfills.step", step).await? else { return Ok(()) };
        let rows = rows.unsigned_abs();
        attempt.progress(rows, total.unsigned_abs().max(rows), None).await;
        tokio::select! {
            () = tokio::time::sleep(begun.elapsed().max(REST)) => {}
            () = attempt.cancelled().cancelled() => return Err(anyhow!("stopped after {rows} rows").into()),
        }
    }
}
