//! What the tests share: a database, workers with short leases, a log of what handlers did.

use std::{
    str::FromStr as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use jobs::{EnqueueOptions, JobId, JobSpec, JobState, JobView, Settings, Worker};
use runtime::{Lifecycle, ShutdownConfig};
use serde::{Deserialize, Serialize};
use sqlx::{
    Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use test_support::TestDatabase;

pub(crate) const MS: fn(u64) -> Duration = Duration::from_millis;

/// A job that does what its payload says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) n: i64,
}

impl JobSpec for Task {
    const NAME: &'static str = "task";
    const MAX_ATTEMPTS: i16 = 3;
    const TIMEOUT: Duration = Duration::from_secs(20);
}

/// A fresh database and what happened in it.
pub(crate) struct Bench {
    pub(crate) database: TestDatabase,
    pub(crate) pool: PgPool,
    pub(crate) log: Log,
}

/// What handlers did, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn add(&self, entry: impl Into<String>) {
        self.0.lock().unwrap().push(entry.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, entry: &str) -> usize {
        self.all().iter().filter(|e| *e == entry).count()
    }
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let database = TestDatabase::create().await;
        let pool = pool(database.url()).await;
        Self { database, pool, log: Log::default() }
    }

    pub(crate) async fn conn(&self) -> PgConnection {
        PgConnection::connect(self.database.url()).await.unwrap()
    }

    /// A worker without handlers that notices everything quickly.
    pub(crate) fn worker(&self) -> Worker {
        worker_at(&self.pool, self.database.url(), quick())
    }

    pub(crate) async fn enqueue(&self, n: i64) -> JobId {
        self.enqueue_with(n, EnqueueOptions::default()).await
    }

    pub(crate) async fn enqueue_with(&self, n: i64, options: EnqueueOptions) -> JobId {
        jobs::enqueue(&mut self.conn().await, &Task { n }, options).await.unwrap().id()
    }

    pub(crate) async fn find(&self, id: JobId) -> JobView {
        jobs::find(&mut self.conn().await, id).await.unwrap().expect("the job is there")
    }

    /// Waits until the job is in this state.
    pub(crate) async fn until(&self, id: JobId, state: JobState) -> JobView {
        for _ in 0..6_000 {
            let job = self.find(id).await;
            if job.state == state {
                return job;
            }
            tokio::time::sleep(MS(10)).await;
        }
        panic!("job {id} did not become {state:?}: {:?}", self.find(id).await);
    }

    /// Waits until the log has so many entries of this kind.
    pub(crate) async fn logged(&self, entry: &str, times: usize) {
        eventually(entry, async || self.log.count(entry) >= times).await;
    }

    pub(crate) async fn execute(&self, sql: &'static str) -> u64 {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap().rows_affected()
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }
}

pub(crate) async fn pool(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(10).connect(url).await.unwrap()
}

pub(crate) fn worker_at(pool: &PgPool, url: &str, settings: Settings) -> Worker {
    Worker::new(pool.clone(), PgConnectOptions::from_str(url).unwrap(), settings)
}

/// Looks and rescues often, and keeps a lease that a busy machine does not lose.
pub(crate) fn quick() -> Settings {
    Settings { lease: Duration::from_secs(20), poll_interval: MS(100), concurrency: 4, ..Settings::default() }
}

/// A lease for tests that lose it.
pub(crate) fn short_lease() -> Settings {
    Settings { lease: MS(1_500), ..quick() }
}

/// A life that gives running jobs `budget` less its goodbye.
pub(crate) fn life(budget: Duration) -> Lifecycle {
    Lifecycle::new(ShutdownConfig { delay: Duration::ZERO, budget })
}

/// Ends a life and asserts that nothing had to be cut.
pub(crate) async fn end(life: &Lifecycle) {
    life.begin_shutdown();
    assert_eq!(life.run_until_stopped().await, 0, "tasks had to be cut");
    assert_eq!(life.failed_task(), None);
}

/// True under `cargo xtask abuse`: cases that are long run in full, and their figures count.
#[expect(clippy::disallowed_methods, reason = "how `cargo xtask abuse` says so")]
pub(crate) fn in_full() -> bool {
    std::env::var_os("ABUSE_IN_FULL").is_some()
}

pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(MS(10)).await;
    }
    panic!("did not happen within a minute: {what}");
}
