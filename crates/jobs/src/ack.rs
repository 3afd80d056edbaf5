//! Acknowledging: what became of an attempt, written in batches, and only if the job is still ours.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use runtime::backoff::Backoff;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    Error, JobId, JobState,
    db::Kept,
    enqueue::{MAX_DELAY, storable},
    held::HeldJob,
    json,
};

/// A statement carries at most so many.
const BATCH: usize = 1_000;
/// A batch of so many means that there is a lot to do; then the next one is given a moment to grow, because each costs a
/// commit. An idle queue acknowledges at once.
const BUSY: usize = 50;
const GROW: Duration = Duration::from_millis(2);

/// Names one claim of a job. The fence differs from that of every other claim of the job, so a worker that was declared
/// dead and comes back cannot touch what another one runs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) id: JobId,
    pub(crate) fence: i64,
    pub(crate) worker: Uuid,
}

/// The end of a job.
#[derive(Debug, Clone)]
pub(crate) struct Final {
    key: Key,
    state: JobState,
    result: Option<Value>,
    error: Option<String>,
}

impl Final {
    pub(crate) fn completed(key: Key, result: Option<Value>) -> Self {
        Self { key, state: JobState::Completed, result, error: None }
    }

    pub(crate) fn discarded(key: Key, error: &str) -> Self {
        Self { key, state: JobState::Discarded, result: None, error: Some(json::text(error)) }
    }

    pub(crate) fn cancelled(key: Key, error: Option<&str>) -> Self {
        Self { key, state: JobState::Cancelled, result: None, error: error.map(json::text) }
    }
}

/// Back to the queue.
#[derive(Debug, Clone)]
pub(crate) struct Back {
    key: Key,
    when: When,
    /// None: it did not fail, and the attempt is handed back.
    error: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    In(Duration),
    At(DateTime<Utc>),
}

impl Back {
    pub(crate) fn failed(key: Key, when: When, error: &str) -> Self {
        Self { key, when, error: Some(json::text(error)) }
    }

    pub(crate) fn released(key: Key) -> Self {
        Self { key, when: When::In(Duration::ZERO), error: None }
    }
}

/// What to write about a job.
#[derive(Debug, Clone)]
pub(crate) enum Ack {
    Final(Final),
    Back(Back),
    /// The handler completed the job in its own transaction. This writes only if that did not commit after all.
    Confirm(Back),
}

impl Ack {
    fn key(&self) -> Key {
        match self {
            Self::Final(ack) => ack.key,
            Self::Back(ack) | Self::Confirm(ack) => ack.key,
        }
    }
}

/// An acknowledgement on its way; the job counts as held until it is written.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) ack: Ack,
    pub(crate) _held: HeldJob,
}

/// Writes acknowledgements until every sender is gone. While one batch is being written the next one gathers, so batches
/// are as large as the database is slow, and an idle queue acknowledges at once.
pub(crate) async fn run(pool: PgPool, mut acks: mpsc::Receiver<Pending>) {
    let mut conn = Kept::new(pool);
    let mut batch = Vec::with_capacity(BATCH);
    while acks.recv_many(&mut batch, BATCH).await > 0 {
        let busy = batch.len() >= BUSY;
        // Each kind is one statement of its own, so a statement that failed has written nothing and can be repeated.
        let (finals, backs): (Vec<_>, Vec<_>) =
            batch.drain(..).partition(|p: &Pending| matches!(p.ack, Ack::Final(_)));
        write(&mut conn, finals).await;
        write(&mut conn, backs).await;
        if busy && !acks.is_closed() {
            tokio::time::sleep(GROW).await;
        } else if acks.is_empty() {
            conn.give_back();
        }
    }
}

async fn write(conn: &mut Kept, mut batch: Vec<Pending>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut repeated = false;
    while !batch.is_empty() {
        let written = conn.call(async |conn| write_once(conn, &batch).await).await;
        match written {
            Ok(found) => {
                report_lost(&batch, found, repeated);
                return;
            }
            Err(error) if refused(&error) => {
                // One row that Postgres does not take must not hold up the others.
                tracing::error!(error = %chain(&error), rows = batch.len(), "acknowledgements were refused");
                if batch.len() > 1 {
                    for one in batch {
                        Box::pin(write(conn, vec![one])).await;
                    }
                    return;
                }
                let [one] = batch.as_mut_slice() else { return };
                if repeated {
                    return;
                }
                one.ack = Ack::Final(Final::discarded(one.ack.key(), &chain(&error)));
                repeated = true;
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), rows = batch.len(), "acknowledging again in a moment");
                repeated = true;
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn write_once(conn: &mut PgConnection, batch: &[Pending]) -> Result<Vec<JobId>, Error> {
    let finals: Vec<&Final> =
        batch.iter().filter_map(|p| if let Ack::Final(ack) = &p.ack { Some(ack) } else { None }).collect();
    if !finals.is_empty() {
        return finish(conn, &finals).await;
    }
    let backs: Vec<&Back> = batch
        .iter()
        .filter_map(|p| if let Ack::Back(ack) | Ack::Confirm(ack) = &p.ack { Some(ack) } else { None })
        .collect();
    give_back(conn, &backs).await
}

fn report_lost(batch: &[Pending], found: Vec<JobId>, repeated: bool) {
    if found.len() == batch.len() && matches!(batch[0].ack, Ack::Final(_)) {
        return;
    }
    let found: HashSet<JobId> = found.into_iter().collect();
    for pending in batch {
        let id = pending.ack.key().id;
        let there = found.contains(&id);
        match (&pending.ack, there) {
            (Ack::Confirm(_), true) => {
                tracing::error!(
                    job = id,
                    "a handler completed the job in a transaction that it did not commit"
                );
            }
            (Ack::Confirm(_), false) | (_, true) => {}
            // The first try may have been written although its answer was lost.
            (_, false) if repeated => tracing::info!(job = id, "acknowledged before, or the lease was lost"),
            (_, false) => {
                metrics::counter!("jobs_lease_lost_total").increment(1);
                tracing::warn!(job = id, "the lease was lost: the outcome of this attempt is void");
            }
        }
    }
}

/// Ends jobs: moves those that are still ours to the finished ones and answers with their ids.
pub(crate) async fn finish(conn: &mut PgConnection, acks: &[&Final]) -> Result<Vec<JobId>, Error> {
    let (ids, fences, workers) = keys(acks.iter().map(|a| a.key));
    let states: Vec<&str> = acks.iter().map(|a| a.state.as_str()).collect();
    let results: Vec<Option<Value>> = acks.iter().map(|a| a.result.clone()).collect();
    let errors: Vec<Option<String>> = acks.iter().map(|a| a.error.clone()).collect();
    // `(select $1)` hides the number of rows from the planner: for a large batch it would read the whole table instead of
    // probing the index.
    let gone = sqlx::query_scalar!(
        "with gone as (
             delete from job
             using unnest((select $1::bigint[]), (select $2::bigint[]), (select $3::uuid[]), (select $4::text[]),
                          (select $5::jsonb[]), (select $6::text[]))
                 as ack (id, fence, worker, final_state, result, error)
             where job.id = ack.id and job.fence = ack.fence and job.worker = ack.worker
             returning job.*, ack.final_state, ack.result, ack.error
         ), freed as (
             delete from job_unique u using gone
             where u.key = gone.unique_key and u.job_id = gone.id and u.expires_at = 'infinity'
         )
         insert into job_done (id, queue, kind, priority, state, run_at, args, attempt, max_attempts, timeout_ms, fence,
                               owner, progress, result, errors, trace, created_at, claimed_at)
         select id, queue, kind, priority, final_state, run_at, args, attempt, max_attempts, timeout_ms, fence,
                owner, progress, result,
                case when error is null then errors else job_add_error(errors, attempt, error) end,
                trace, created_at, claimed_at
         from gone
         returning id",
        &ids,
        &fences,
        &workers,
        &states as &[&str],
        &results as &[Option<Value>],
        &errors as &[Option<String>],
    )
    .fetch_all(conn)
    .await?;
    Ok(gone)
}

/// Puts jobs that are still ours back into their queue and answers with their ids.
pub(crate) async fn give_back(conn: &mut PgConnection, acks: &[&Back]) -> Result<Vec<JobId>, Error> {
    let (ids, fences, workers) = keys(acks.iter().map(|a| a.key));
    let errors: Vec<Option<String>> = acks.iter().map(|a| a.error.clone()).collect();
    let (mut delays, mut times) = (Vec::new(), Vec::new());
    for ack in acks {
        let (delay, time) = match ack.when {
            When::In(delay) => (delay.min(MAX_DELAY).as_secs_f64() * 1_000.0, None),
            When::At(time) => (0.0, Some(storable(time))),
        };
        delays.push(delay);
        times.push(time);
    }
    // Released jobs can run at once elsewhere, so their queues are notified; retries have their timers.
    let back = sqlx::query!(
        r#"with back as (
               update job
               set state = 'ready', worker = null,
                   attempt = case when ack.error is null then greatest(job.attempt - 1, 0) else job.attempt end,
                   run_at = coalesce(ack.run_at, clock_timestamp() + ack.delay_ms * interval '1 ms'),
                   errors = case when ack.error is null then job.errors
                                 else job_add_error(job.errors, job.attempt, ack.error) end
               from unnest((select $1::bigint[]), (select $2::bigint[]), (select $3::uuid[]), (select $4::text[]),
                           (select $5::float8[]), (select $6::timestamptz[]))
                   as ack (id, fence, worker, error, delay_ms, run_at)
               where job.id = ack.id and job.fence = ack.fence and job.worker = ack.worker
               returning job.id, job.queue, ack.error is null as released
           ), told as (
               select pg_notify('jobs', queue) from (select distinct queue from back where released) as q
           )
           select id, (select count(*) from told) as told from back"#,
        &ids,
        &fences,
        &workers,
        &errors as &[Option<String>],
        &delays,
        &times as &[Option<DateTime<Utc>>],
    )
    .fetch_all(conn)
    .await?;
    Ok(back.into_iter().map(|r| r.id).collect())
}

fn keys(keys: impl Iterator<Item = Key>) -> (Vec<i64>, Vec<i64>, Vec<Uuid>) {
    let (mut ids, mut fences, mut workers) = (Vec::new(), Vec::new(), Vec::new());
    for key in keys {
        ids.push(key.id);
        fences.push(key.fence);
        workers.push(key.worker);
    }
    (ids, fences, workers)
}

/// True when the database understood and said no, so that asking again would get the same answer.
fn refused(error: &Error) -> bool {
    let Error::Database(sqlx::Error::Database(error)) = error else { return false };
    // Data exceptions, integrity violations, statement too complex.
    error.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
}

/// The error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
