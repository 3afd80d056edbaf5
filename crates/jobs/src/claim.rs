//! Claiming: which jobs this worker runs next.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, value::RawValue};
use sqlx::{Connection as _, PgConnection, types::Json};
use uuid::Uuid;

use crate::{Error, ack::Key, floor::Levels, handler::Kinds};

/// A job that this worker holds.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) key: Key,
    pub(crate) kind: String,
    pub(crate) args: Box<RawValue>,
    pub(crate) attempt: i16,
    pub(crate) max_attempts: i16,
    pub(crate) timeout: Duration,
    pub(crate) traceparent: Option<String>,
    pub(crate) owner: Option<Uuid>,
    pub(crate) cancel_requested: bool,
    pub(crate) place: Place,
}

/// Where a job stood in its queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) priority: i16,
    pub(crate) run_at: DateTime<Utc>,
    pub(crate) id: i64,
    pub(crate) claimed_at: DateTime<Utc>,
}

impl Claimed {
    /// How long it had been due when it was claimed.
    pub(crate) fn waited(&self) -> Duration {
        (self.place.claimed_at - self.place.run_at).to_std().unwrap_or_default()
    }
}

struct Row {
    id: i64,
    kind: String,
    args: Json<Box<RawValue>>,
    attempt: i16,
    max_attempts: i16,
    timeout_ms: i64,
    fence: i64,
    trace: Option<Value>,
    owner: Option<Uuid>,
    cancel_requested: bool,
    priority: i16,
    run_at: DateTime<Utc>,
    claimed_at: DateTime<Utc>,
}

impl Row {
    fn claimed(self, worker: Uuid) -> Claimed {
        let traceparent = self.trace.as_ref().and_then(|t| t.get("traceparent")?.as_str());
        Claimed {
            key: Key { id: self.id, fence: self.fence, worker },
            kind: self.kind,
            args: self.args.0,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            timeout: Duration::from_millis(self.timeout_ms.unsigned_abs()),
            traceparent: traceparent.map(str::to_owned),
            owner: self.owner,
            cancel_requested: self.cancel_requested,
            place: Place {
                priority: self.priority,
                run_at: self.run_at,
                id: self.id,
                claimed_at: self.claimed_at,
            },
        }
    }
}

/// Claims up to `n` due jobs of these kinds, most urgent first. Kinds that this binary does not know stay where they are.
pub(crate) async fn claim(
    conn: &mut PgConnection,
    worker: Uuid,
    queue: &str,
    kinds: &[String],
    from: &Levels,
    n: usize,
) -> Result<Vec<Claimed>, Error> {
    // `id = any(array(...))` and not a join: the join's plan is a sequential scan of the table. The outer limit stops
    // pulling from the lateral part, so no row is locked in vain. One probe for each priority keeps jobs that are not due
    // yet out of the scan. A worker without a lease gets nothing: what it claimed would be rescued at once, and an attempt
    // be lost. The commit does not wait for the disk: a claim that a crash of the server takes back has done no harm,
    // because nothing is acknowledged without it (docs/decisions/0070-claims-do-not-wait-for-the-disk.md).
    let mut rows = sqlx::query_as!(
        Row,
        r#"update job
           set state = 'running', worker = $1, attempt = attempt + 1, fence = fence + 1, claimed_at = clock_timestamp()
           where id = any(array(
               select due.id
               from unnest($5::timestamptz[], $6::bigint[]) with ordinality as floor (run_at, id, level)
               cross join lateral (
                   select id from job
                   where state = 'ready' and queue = $2 and priority = floor.level - 1 and run_at <= now()
                     and (run_at, id) >= (floor.run_at, floor.id) and kind = any($3)
                   order by run_at, id
                   limit $4
                   for update skip locked
               ) as due
               where not exists (select from queue where name = $2 and paused_at is not null)
                 and exists (select from worker where worker.id = $1 and lease_until > now())
               limit $4
           )) and (select set_config('synchronous_commit', 'off', true)) = 'off'
           returning id, kind, args as "args: Json<Box<RawValue>>", attempt, max_attempts, timeout_ms, fence, trace,
                     owner, cancel_requested, priority, run_at, claimed_at as "claimed_at!""#,
        worker,
        queue,
        kinds,
        n as i64,
        &from.run_at as &[DateTime<Utc>],
        &from.id
    )
    .fetch_all(conn)
    .await?;
    // An update returns rows in no order.
    rows.sort_unstable_by_key(|r| (r.priority, r.run_at, r.id));
    Ok(rows.into_iter().map(|r| r.claimed(worker)).collect())
}

/// As [`claim`], for a kind of which only so many run at a time over all workers. Claims of the kind go one after the
/// other; `None` means that another worker is at it.
pub(crate) async fn claim_limited(
    conn: &mut PgConnection,
    worker: Uuid,
    queue: &str,
    (kind, limit): &(String, u16),
    n: usize,
) -> Result<Option<Vec<Claimed>>, Error> {
    let mut tx = conn.begin().await?;
    // A statement of its own before the count: a snapshot taken before the lock would not see the previous claim.
    let locked = sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtextextended('job_kind:' || $1, 0)) as "locked!""#,
        kind
    )
    .fetch_one(&mut *tx)
    .await?;
    if !locked {
        return Ok(None);
    }
    let running = sqlx::query_scalar!(
        r#"select count(*) as "running!" from job where state = 'running' and kind = $1"#,
        kind
    )
    .fetch_one(&mut *tx)
    .await?;
    let free = usize::from(*limit).saturating_sub(running.unsigned_abs() as usize);
    let claimed = match n.min(free) {
        0 => Vec::new(),
        n => claim(&mut tx, worker, queue, std::slice::from_ref(kind), &Levels::FRONT, n).await?,
    };
    tx.commit().await?;
    Ok(Some(claimed))
}

/// When a queue is to be looked at again.
#[derive(Debug)]
pub(crate) struct NextDue {
    /// How long until the next job is due; none when none is waiting.
    pub(crate) wait: Option<Duration>,
    /// The database's time.
    pub(crate) now: DateTime<Utc>,
    pub(crate) paused: bool,
}

/// When the next job of these kinds is due. A job that is due already counts: it has become so since the claim, and a look at
/// later times only would miss it. Of kinds with a limit only those count that have become due since `since`, a time before
/// the claim: what was due then may have to wait for the end of another one.
pub(crate) async fn next_due(
    conn: &mut PgConnection,
    queue: &str,
    kinds: &Kinds,
    from: &Levels,
    since: DateTime<Utc>,
) -> Result<NextDue, Error> {
    let limited: Vec<String> = kinds.limited.iter().map(|(kind, _)| kind.clone()).collect();
    let next = sqlx::query!(
        r#"select clock_timestamp() as "now!",
                  exists (select from queue where name = $1 and paused_at is not null) as "paused!",
                  (select min(next.run_at)
                   from unnest($4::timestamptz[], $5::bigint[]) with ordinality as floor (run_at, id, level)
                   cross join lateral (
                       (select run_at from job
                        where state = 'ready' and queue = $1 and priority = floor.level - 1
                          and (run_at, id) >= (floor.run_at, floor.id)
                          and kind = any($2) and cardinality($2) > 0
                        order by run_at, id
                        limit 1)
                       union all
                       (select run_at from job
                        where state = 'ready' and queue = $1 and priority = floor.level - 1 and run_at > $6
                          and kind = any($3) and cardinality($3) > 0
                        order by run_at, id
                        limit 1)
                   ) as next) as run_at"#,
        queue,
        &kinds.free,
        &limited,
        &from.run_at as &[DateTime<Utc>],
        &from.id,
        since,
    )
    .fetch_one(conn)
    .await?;
    let wait = next.run_at.filter(|_| !next.paused).map(|at| (at - next.now).to_std().unwrap_or_default());
    Ok(NextDue { wait, now: next.now, paused: next.paused })
}

/// Gives back jobs that the database says are ours and that we do not know: the answer to the claim was lost on its way.
/// The caller must not claim meanwhile. The attempt is handed back, it never began.
pub(crate) async fn release_unknown(
    conn: &mut PgConnection,
    worker: Uuid,
    queue: &str,
    held: &[(i64, i64)],
) -> Result<u64, Error> {
    let (ids, fences): (Vec<i64>, Vec<i64>) = held.iter().copied().unzip();
    let released = sqlx::query!(
        "update job set state = 'ready', worker = null, attempt = greatest(attempt - 1, 0)
         where state = 'running' and worker = $1 and queue = $2
           and not exists (
               select from unnest($3::bigint[], $4::bigint[]) as held (id, fence)
               where held.id = job.id and held.fence = job.fence
           )",
        worker,
        queue,
        &ids,
        &fences
    )
    .execute(conn)
    .await?;
    Ok(released.rows_affected())
}
