//! What an operator does: retry, cancel, pause, and look at queues, workers and the schedule.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Error, JobId, cron};

/// What became of a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It had not begun and never will.
    Done,
    /// It runs; its worker has been asked to stop it.
    Requested,
    /// There is no such job, or it has ended.
    NotLive,
}

/// Cancels a job: at once when it waits, by asking its worker when it runs. Commit soon: the job's worker cannot
/// acknowledge it, or anything else in the same batch, while the caller's transaction holds its row.
pub async fn cancel(conn: &mut PgConnection, id: JobId) -> Result<Cancelled, Error> {
    // Between the two statements the job may be claimed, or fail and wait again: look once more.
    for _ in 0..3 {
        let waiting = sqlx::query!(
            "with gone as (
                 delete from job where id = $1 and state = 'ready' returning *
             ), freed as (
                 delete from job_unique u using gone where u.key = gone.unique_key and u.job_id = gone.id
             )
             insert into job_done (id, queue, kind, priority, state, run_at, args, attempt, max_attempts, timeout_ms,
                                   fence, owner, progress, errors, trace, created_at, claimed_at)
             select id, queue, kind, priority, 'cancelled', run_at, args, attempt, max_attempts, timeout_ms,
                    fence, owner, progress, errors, trace, created_at, claimed_at
             from gone",
            id
        )
        .execute(&mut *conn)
        .await?;
        if waiting.rows_affected() == 1 {
            return Ok(Cancelled::Done);
        }
        let running = sqlx::query!(
            r#"with asked as (
                   update job set cancel_requested = true where id = $1 and state = 'running' returning id
               )
               select pg_notify('jobs_cancel', id::text) is null as notified from asked"#,
            id
        )
        .fetch_optional(&mut *conn)
        .await?;
        if running.is_some() {
            return Ok(Cancelled::Requested);
        }
    }
    Ok(Cancelled::NotLive)
}

/// Runs a job again: a discarded or cancelled one starts over under its id with its history kept, a waiting one is due
/// now. False when it runs, is completed, or is not there.
pub async fn retry(conn: &mut PgConnection, id: JobId) -> Result<bool, Error> {
    let revived = sqlx::query!(
        r#"with gone as (
               delete from job_done where id = $1 and state in ('discarded', 'cancelled') returning *
           ), revived as (
               insert into job (id, queue, kind, priority, args, max_attempts, timeout_ms, fence, owner, errors, trace,
                                created_at)
               select id, queue, kind, priority, args, max_attempts, timeout_ms, fence, owner, errors, trace, created_at
               from gone
               returning queue
           ), due as (
               update job set run_at = now() where id = $1 and state = 'ready' returning queue
           )
           select pg_notify('jobs', queue) is null as notified from (table revived union all table due) as q"#,
        id
    )
    .fetch_all(conn)
    .await?;
    Ok(!revived.is_empty())
}

/// Nothing of this queue is claimed until it is resumed; what runs goes on.
pub async fn pause_queue(conn: &mut PgConnection, queue: &str) -> Result<(), Error> {
    sqlx::query!(
        "insert into queue (name, paused_at) values ($1, now())
         on conflict (name) do update set paused_at = coalesce(queue.paused_at, now())",
        queue
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Undoes [`pause_queue`].
pub async fn resume_queue(conn: &mut PgConnection, queue: &str) -> Result<(), Error> {
    sqlx::query!("update queue set paused_at = null where name = $1", queue).execute(&mut *conn).await?;
    sqlx::query!("select pg_notify('jobs', $1) is null as notified", queue).fetch_one(conn).await?;
    Ok(())
}

/// How a queue is doing.
#[derive(Debug, Clone, Serialize)]
pub struct QueueView {
    /// Its name.
    pub name: String,
    /// Since when it is paused.
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

/// All queues that a worker serves, that are paused, or that hold a job.
pub async fn queues(conn: &mut PgConnection) -> Result<Vec<QueueView>, Error> {
    // The recursive part hops from one queue to the next in the index instead of reading every job; the counts go through
    // the index of each priority in order, so that they end where they are to end.
    let queues = sqlx::query_as!(
        QueueView,
        r#"with recursive used (name) as (
               (select queue from job where state = 'ready' order by queue limit 1)
               union all
               select (select queue from job where state = 'ready' and queue > used.name order by queue limit 1)
               from used where used.name is not null
           ), names as (
               select name from used where name is not null
               union select name from queue
               union select queue from job where state = 'running'
           )
           select names.name as "name!", queue.paused_at as "paused_at?",
                  ready.n as "ready!", scheduled.n as "scheduled!", running.n as "running!",
                  coalesce(extract(epoch from now() - oldest.run_at), 0)::float8 as "oldest_ready_seconds!"
           from names
           left join queue on queue.name = names.name
           cross join lateral (
               select count(*) as n from (
                   select from generate_series(0, 3) as level (priority)
                   cross join lateral (
                       select from job
                       where state = 'ready' and queue = names.name and priority = level.priority and run_at <= now()
                       order by run_at limit 10000
                   ) as one_level
                   limit 10000
               ) as counted
           ) as ready
           cross join lateral (
               select count(*) as n from (
                   select from generate_series(0, 3) as level (priority)
                   cross join lateral (
                       select from job
                       where state = 'ready' and queue = names.name and priority = level.priority and run_at > now()
                       order by run_at limit 10000
                   ) as one_level
                   limit 10000
               ) as counted
           ) as scheduled
           cross join lateral (
               select count(*) as n from job where state = 'running' and queue = names.name
           ) as running
           cross join lateral (
               select min(first.run_at) as run_at
               from generate_series(0, 3) as level (priority)
               cross join lateral (
                   select run_at from job
                   where state = 'ready' and queue = names.name and priority = level.priority and run_at <= now()
                   order by run_at limit 1
               ) as first
           ) as oldest
           order by names.name"#
    )
    .fetch_all(conn)
    .await?;
    Ok(queues)
}

/// A worker that is or was lately alive.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerView {
    /// New at every start, and after a lost lease.
    pub id: Uuid,
    /// The replica's name.
    pub name: String,
    /// The binary's version.
    pub version: String,
    /// What it serves.
    pub queues: Vec<String>,
    /// When it registered.
    pub started_at: DateTime<Utc>,
    /// Alive until then, unless it renews.
    pub lease_until: DateTime<Utc>,
    /// Jobs it holds.
    pub running: i64,
}

/// All workers whose rows have not been cleaned up yet.
pub async fn workers(conn: &mut PgConnection) -> Result<Vec<WorkerView>, Error> {
    let workers = sqlx::query_as!(
        WorkerView,
        r#"select id, name, version, queues, started_at, lease_until,
                  (select count(*) from job where state = 'running' and job.worker = worker.id) as "running!"
           from worker order by started_at"#
    )
    .fetch_all(conn)
    .await?;
    Ok(workers)
}

/// A cron line and its last and next tick.
#[derive(Debug, Clone, Serialize)]
pub struct CronView {
    /// Its name.
    pub name: String,
    /// The expression.
    pub schedule: String,
    /// The time zone in which it is read.
    pub timezone: String,
    /// `skip`, `one` or `all`.
    pub catch_up: String,
    /// The kind of job it enqueues.
    pub kind: String,
    /// The last tick that was decided.
    pub last_tick: Option<DateTime<Utc>>,
    /// The job of that tick; none when the tick was skipped.
    pub last_job: Option<JobId>,
    /// The next tick; none when the line never fires again.
    pub next_tick: Option<DateTime<Utc>>,
    /// When a worker last had this line in its table: long ago means that it was removed from the code.
    pub seen_at: DateTime<Utc>,
}

/// The schedule as the workers registered it.
pub async fn cron_lines(conn: &mut PgConnection) -> Result<Vec<CronView>, Error> {
    let rows = sqlx::query!(
        r#"select l.name, l.schedule, l.timezone, l.catch_up, l.kind, l.seen_at, now() as "now!",
                  t.tick as "tick?", t.job_id as "job_id?"
           from cron_line l
           left join lateral (
               select tick, job_id from cron_tick where cron_tick.name = l.name order by tick desc limit 1
           ) as t on true
           order by l.name"#
    )
    .fetch_all(conn)
    .await?;
    let views = rows.into_iter().map(|r| {
        let next_tick = cron::next_after(&r.schedule, &r.timezone, r.tick.unwrap_or(r.now).max(r.now));
        CronView {
            name: r.name,
            schedule: r.schedule,
            timezone: r.timezone,
            catch_up: r.catch_up,
            kind: r.kind,
            last_tick: r.tick,
            last_job: r.job_id,
            next_tick,
            seen_at: r.seen_at,
        }
    });
    Ok(views.collect())
}

/// Makes a worker's queues known to [`queues`] before their first job.
pub(crate) async fn introduce_queues(conn: &mut PgConnection, names: &[String]) -> Result<(), Error> {
    sqlx::query!("insert into queue (name) select unnest($1::text[]) on conflict do nothing", names)
        .execute(conn)
        .await?;
    Ok(())
}
