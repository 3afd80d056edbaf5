//! The worker's lease: renewed on a thread and a connection of its own, given up before anyone else may take the jobs,
//! and the rescue of jobs whose worker did not renew.

use std::{thread, time::Duration};

use runtime::Lifecycle;
use sqlx::{Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{Error, ack::chain, db};

/// A lease that is held now. A worker that lost its lease comes back with a new session under a new id, so that what it
/// ran before stays lost.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: Uuid,
    /// Cancelled when the lease could not be renewed in time.
    pub(crate) lost: CancellationToken,
}

/// Who we are, for the `worker` table.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) queues: Vec<String>,
}

/// Starts the heartbeat; the receiver holds the present session, if any. `stop` ends it and removes the worker's row.
///
/// It has a thread of its own because a job that computes without an `.await` blocks the runtime's threads, and that
/// must not look like a dead worker. It has a connection of its own because the pool may be exhausted.
pub(crate) fn start(
    lifecycle: &Lifecycle,
    options: PgConnectOptions,
    identity: Identity,
    lease: Duration,
    stop: CancellationToken,
) -> watch::Receiver<Option<Session>> {
    let (sessions, receiver) = watch::channel(None);
    let (mut ended, wait) = oneshot::channel::<()>();
    let heartbeat = Heartbeat { options, identity, lease, sessions, stop };
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a small runtime can be built");
        runtime.block_on(async {
            tokio::select! {
                () = heartbeat.run() => {}
                // The process's runtime is gone, and with it every job.
                () = ended.closed() => {}
            }
        });
        let _ = ended.send(());
    };
    let thread = thread::Builder::new().name("job-lease".to_owned()).spawn(run);
    lifecycle.spawn("job lease", async move {
        match thread {
            // An error means that the thread panicked; this task's end is then what stops the process.
            Ok(_) => drop(wait.await),
            Err(error) => tracing::error!(%error, "the heartbeat's thread cannot be started"),
        }
    });
    receiver
}

struct Heartbeat {
    options: PgConnectOptions,
    identity: Identity,
    lease: Duration,
    sessions: watch::Sender<Option<Session>>,
    stop: CancellationToken,
}

impl Heartbeat {
    async fn run(self) {
        let mut conn = None;
        while !self.stop.is_cancelled() {
            let session = Session { id: Uuid::new_v4(), lost: CancellationToken::new() };
            let begun = Instant::now();
            match self.within(begun + self.lease / 3, self.register(&mut conn, session.id)).await {
                Ok(()) => {
                    tracing::debug!(worker = %session.id, "lease taken");
                    self.sessions.send_replace(Some(session.clone()));
                    if self.hold(&mut conn, &session, begun).await {
                        continue;
                    }
                    self.sessions.send_replace(None);
                    session.lost.cancel();
                    metrics::counter!("worker_lease_lost_total").increment(1);
                    tracing::error!(worker = %session.id, "the lease was lost: its jobs are cancelled here");
                }
                Err(error) => {
                    conn = None;
                    tracing::warn!(error = %chain(&error), "no lease yet");
                    self.pause(Duration::from_secs(1).min(self.lease / 6)).await;
                }
            }
        }
        // Stopped in an orderly way: nothing is running any more.
        let id = self.sessions.send_replace(None).map(|s| s.id);
        if let (Some(conn), Some(id)) = (&mut conn, id) {
            let deleted = sqlx::query!("delete from worker where id = $1", id).execute(conn);
            let _ = tokio::time::timeout(Duration::from_secs(1), deleted).await;
        }
    }

    /// Renews until stopped (true) or lost (false).
    async fn hold(&self, conn: &mut Option<PgConnection>, session: &Session, mut renewed: Instant) -> bool {
        let mut wait = self.lease / 3;
        loop {
            self.pause(wait).await;
            if self.stop.is_cancelled() {
                return true;
            }
            // Measured from before the last renewal was sent, so the database's lease ends a third later than ours.
            let lost_at = renewed + self.lease * 2 / 3;
            let begun = Instant::now();
            if begun >= lost_at {
                return false;
            }
            match self.within(lost_at.min(begun + self.lease / 4), self.renew(conn, session.id)).await {
                Ok(true) => (renewed, wait) = (begun, self.lease / 3),
                Ok(false) => return false,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the lease was not renewed, trying again");
                    *conn = None;
                    wait = self.lease / 24;
                }
            }
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn within<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        timeout_at(deadline, work).await.unwrap_or(Err(Error::Deadline(self.lease / 3)))
    }

    async fn connected<'c>(&self, conn: &'c mut Option<PgConnection>) -> Result<&'c mut PgConnection, Error> {
        if conn.is_none() {
            *conn = Some(PgConnection::connect_with(&self.options).await?);
        }
        Ok(conn.as_mut().expect("connected above"))
    }

    async fn register(&self, conn: &mut Option<PgConnection>, id: Uuid) -> Result<(), Error> {
        let conn = self.connected(conn).await?;
        sqlx::query!(
            "insert into worker (id, name, version, queues, lease_until)
             values ($1, $2, $3, $4, now() + $5::float8 * interval '1 s')",
            id,
            self.identity.name,
            self.identity.version,
            &self.identity.queues,
            self.lease.as_secs_f64()
        )
        .execute(conn)
        .await?;
        Ok(())
    }

    async fn renew(&self, conn: &mut Option<PgConnection>, id: Uuid) -> Result<bool, Error> {
        let conn = self.connected(conn).await?;
        // A lease that has run out is not renewed: somebody may be rescuing its jobs.
        let renewed = sqlx::query!(
            "update worker set lease_until = now() + $2::float8 * interval '1 s' where id = $1 and lease_until > now()",
            id,
            self.lease.as_secs_f64()
        )
        .execute(conn)
        .await?;
        Ok(renewed.rows_affected() == 1)
    }
}

/// So many jobs are rescued with one statement.
const RESCUE: usize = 500;

/// Takes back the jobs of workers whose lease has run out or whose row is gone. Every worker does this now and then; rows
/// that another one is rescuing are skipped. A job without attempts left is discarded here, which is what ends a job that
/// kills its process.
pub(crate) async fn rescue(pool: &PgPool) -> Result<(), Error> {
    loop {
        let rows = db::call(pool, async |conn| rescue_once(conn).await).await?;
        let full = rows.len() == RESCUE;
        for (id, kind, state) in rows {
            metrics::counter!("jobs_rescued_total", "kind" => kind.clone()).increment(1);
            match state.as_str() {
                "ready" => tracing::warn!(job = id, kind, "rescued from a lost worker"),
                "cancelled" => tracing::info!(job = id, kind, "cancelled: its worker was lost"),
                _ => {
                    tracing::error!(job = id, kind, "job discarded: the worker of its last attempt was lost");
                }
            }
        }
        if !full {
            return Ok(());
        }
    }
}

async fn rescue_once(conn: &mut PgConnection) -> Result<Vec<(i64, String, String)>, Error> {
    let rows = sqlx::query!(
        r#"with lost as (
               select id from job
               where state = 'running'
                 and not exists (select from worker where worker.id = job.worker and worker.lease_until > now())
               limit $1
               for update skip locked
           ), back as (
               update job
               set state = 'ready', worker = null, run_at = now(),
                   errors = job_add_error(errors, attempt, 'the worker was lost')
               where id = any(array(select id from lost)) and attempt < max_attempts and not cancel_requested
               returning id, kind, queue
           ), ended as (
               delete from job
               where id = any(array(select id from lost)) and (attempt >= max_attempts or cancel_requested)
               returning *
           ), freed as (
               delete from job_unique u using ended
               where u.key = ended.unique_key and u.job_id = ended.id and u.expires_at = 'infinity'
           ), kept as (
               insert into job_done (id, queue, kind, priority, state, run_at, args, attempt, max_attempts, timeout_ms,
                                     fence, owner, progress, errors, trace, created_at, claimed_at)
               select id, queue, kind, priority, case when cancel_requested then 'cancelled' else 'discarded' end,
                      run_at, args, attempt, max_attempts, timeout_ms, fence, owner, progress,
                      job_add_error(errors, attempt, 'the worker was lost'), trace, created_at, claimed_at
               from ended
               returning id, kind, state
           ), told as (
               select pg_notify('jobs', queue) from (select distinct queue from back) as q
           )
           select id as "id!", kind as "kind!", 'ready' as "state!", (select count(*) from told) as told from back
           union all
           select id, kind, state, null from kept"#,
        RESCUE as i64
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|r| (r.id, r.kind, r.state)).collect())
}

/// Which of these jobs somebody wants to stop, in case the notification was lost.
pub(crate) async fn cancel_requests(conn: &mut PgConnection, held: &[i64]) -> Result<Vec<i64>, Error> {
    let ids = sqlx::query_scalar!("select id from job where id = any($1) and cancel_requested", held)
        .fetch_all(conn)
        .await?;
    Ok(ids)
}
