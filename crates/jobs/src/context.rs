//! What a handler knows about the attempt it is, and what it can do with it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Error, JobId, Progress,
    ack::{self, Final, Key},
    claim::Claimed,
    db, handler, json,
};

/// Progress is written at most so often; what comes in between is dropped.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// One attempt at a job. Clones mean the same attempt.
#[derive(Clone)]
pub struct JobContext {
    inner: Arc<Inner>,
}

struct Inner {
    key: Key,
    kind: String,
    attempt: i16,
    max_attempts: i16,
    owner: Option<Uuid>,
    pool: PgPool,
    cancelled: CancellationToken,
    completed: AtomicBool,
    progress_written: Mutex<Option<Instant>>,
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let i = &self.inner;
        write!(f, "{} {} (attempt {} of {})", i.kind, i.key.id, i.attempt, i.max_attempts)
    }
}

impl JobContext {
    pub(crate) fn new(job: &Claimed, pool: PgPool, cancelled: CancellationToken) -> Self {
        Self {
            inner: Arc::new(Inner {
                key: job.key,
                kind: job.kind.clone(),
                attempt: job.attempt,
                max_attempts: job.max_attempts,
                owner: job.owner,
                pool,
                cancelled,
                completed: AtomicBool::new(false),
                progress_written: Mutex::new(None),
            }),
        }
    }

    /// The job's id: the same in every attempt, so it serves as idempotency key towards other systems.
    pub fn id(&self) -> JobId {
        self.inner.key.id
    }

    /// The name of its kind.
    pub fn kind(&self) -> &str {
        &self.inner.kind
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> i16 {
        self.inner.attempt
    }

    /// True when a failure now discards the job.
    pub fn is_last_attempt(&self) -> bool {
        self.inner.attempt >= self.inner.max_attempts
    }

    /// Whose job it is.
    pub fn owner(&self) -> Option<Uuid> {
        self.inner.owner
    }

    /// Cancelled when the job should end: somebody cancelled it, the worker stops, the lease was lost, or its time is up.
    /// Long jobs check it between steps, save what they have, and return; a job that does not is dropped at its next
    /// `.await` a moment later.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.inner.cancelled
    }

    /// The pool of the worker, for single statements. For more than one there is [`Self::transaction`].
    pub fn pool(&self) -> &PgPool {
        &self.inner.pool
    }

    /// Runs `work` in a transaction: committed when it returns `Ok`, rolled back otherwise.
    ///
    /// A job that ends in the middle, cancelled or out of time, closes the connection. `PgPool::begin` does not: dropped before
    /// Postgres has answered it gives back a connection with an open transaction, in which the next one's writes are lost
    /// ([sqlx #4385](https://github.com/launchbadge/sqlx/issues/4385)).
    pub async fn transaction<T, E: From<sqlx::Error>>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        db::transaction(&self.inner.pool, work).await
    }

    /// Shows how far the job is. Cheap to call often: it writes a few times a second at most. Failures are logged only,
    /// because progress is not worth failing a job for.
    pub async fn progress(&self, done: u64, total: u64, note: Option<&str>) {
        {
            let mut written = self.inner.progress_written.lock().unwrap_or_else(PoisonError::into_inner);
            if done != total && written.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
                return;
            }
            *written = Some(Instant::now());
        }
        let progress = Progress { done, total, note: note.map(json::text) };
        let key = self.inner.key;
        let written =
            db::call(&self.inner.pool, async |conn| write_progress(conn, key, &progress).await).await;
        if let Err(error) = written {
            tracing::debug!(%error, "progress was not written");
        }
    }

    /// Completes the job inside the handler's own transaction, so that its effect and its completion commit together:
    /// the effect then happens once, even if the worker dies right after. Commit, then return `Ok(())`; what the
    /// handler returns is ignored in favour of `result`.
    ///
    /// [`Error::LeaseLost`] means that another worker has the job: roll back (returning the error with `?` does).
    pub async fn complete_in(&self, conn: &mut PgConnection, result: &impl Serialize) -> Result<(), Error> {
        let result = handler::result(result).map_err(|_| {
            Error::InvalidPayload("the result of a job must fit into jsonb and 256 KiB".to_owned())
        })?;
        let ack = Final::completed(self.inner.key, result);
        self.inner.completed.store(true, Ordering::Release);
        let gone = ack::finish(conn, &[&ack]).await?;
        if gone.is_empty() { Err(Error::LeaseLost) } else { Ok(()) }
    }

    /// True once [`Self::complete_in`] was called, committed or not.
    pub(crate) fn completed_by_handler(&self) -> bool {
        self.inner.completed.load(Ordering::Acquire)
    }
}

async fn write_progress(conn: &mut PgConnection, key: Key, progress: &Progress) -> Result<(), sqlx::Error> {
    let progress = serde_json::to_value(progress).expect("two numbers and a string are JSON");
    sqlx::query!(
        "update job set progress = $4 where id = $1 and fence = $2 and worker = $3",
        key.id,
        key.fence,
        key.worker,
        progress
    )
    .execute(conn)
    .await?;
    Ok(())
}
