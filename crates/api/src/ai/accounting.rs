//! Writes usage rows, in batches, beside the requests.
//!
//! A request that is over leaves its row in a buffer and goes on. A writer takes the buffer every [`PERIOD`], or as soon as
//! [`BATCH`] rows wait, and appends it with one statement. It runs only while there is something to write, as a task that the
//! shutdown waits for: no row is lost by a deploy.
//!
//! The buffer is bounded. While the database is out, rows wait; when [`CAPACITY`] wait, further ones are dropped and counted
//! (`usage_events_dropped_total`): answering matters more than accounting, and waiting here would hold up every stream. A
//! process that is killed loses what it had not written, at most [`PERIOD`] and a statement; the token limits in Redis were
//! charged before and stay charged.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use db::{Database, usage::UsageEvent};
use runtime::{Lifecycle, Phase, backoff::Backoff};
use tokio::sync::{Notify, watch};

/// How long a row waits for others.
const PERIOD: Duration = Duration::from_millis(200);
/// So many rows don't wait.
const BATCH: usize = 100;
/// So many rows may wait.
const CAPACITY: usize = 10_000;
/// How long [`Accounting::flush`] waits.
const FLUSH: Duration = Duration::from_secs(2);
/// How often an unreachable database is tried again during the shutdown.
const TRIES_AT_THE_END: u32 = 5;

/// The buffer and its writer. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Accounting {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    lifecycle: Lifecycle,
    buffer: Mutex<Buffer>,
    /// Ends the writer's pause.
    now: Notify,
    /// Number of the last row that is done with.
    done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Buffer {
    rows: VecDeque<UsageEvent>,
    /// Number of the last row that was recorded.
    recorded: u64,
    writing: bool,
}

impl Accounting {
    pub(super) fn new(database: Database, lifecycle: Lifecycle) -> Self {
        let inner = Inner {
            database,
            lifecycle,
            buffer: Mutex::default(),
            now: Notify::new(),
            done: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Leaves a row to be written. Never waits.
    pub(super) fn record(&self, row: UsageEvent) {
        let mut buffer = self.inner.lock();
        if buffer.rows.len() >= CAPACITY {
            drop(buffer);
            dropped(1);
            return;
        }
        buffer.rows.push_back(row);
        buffer.recorded += 1;
        if buffer.rows.len() >= BATCH {
            self.inner.now.notify_one();
        }
        // Outside a runtime (its very end) nothing can be written any more.
        if !buffer.writing && tokio::runtime::Handle::try_current().is_ok() {
            buffer.writing = true;
            let writer = Writer { inner: self.inner.clone() };
            self.inner.lifecycle.spawn_task(writer.run());
        }
    }

    /// Waits until everything recorded so far is in the database, but not for long. False when it is not.
    pub(super) async fn flush(&self) -> bool {
        let target = self.inner.lock().recorded;
        let mut done = self.inner.done.subscribe();
        if *done.borrow_and_update() >= target {
            return true;
        }
        self.inner.now.notify_one();
        tokio::time::timeout(FLUSH, done.wait_for(|done| *done >= target)).await.is_ok()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the rows that wait, with the number of the last one; `None` ends the writer.
    fn take(&self) -> Option<(Vec<UsageEvent>, u64)> {
        let mut buffer = self.lock();
        let rows: Vec<UsageEvent> = buffer.rows.drain(..).collect();
        buffer.writing = !rows.is_empty();
        buffer.writing.then_some((rows, buffer.recorded))
    }
}

/// The writer while it runs. If it panics, the next row starts another one.
struct Writer {
    inner: Arc<Inner>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut buffer = self.inner.lock();
        // After a regular end `writing` is false already, or belongs to the next writer.
        if std::thread::panicking() {
            buffer.writing = false;
        }
    }
}

impl Writer {
    async fn run(self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                () = self.inner.now.notified() => {}
                () = self.inner.lifecycle.reached(Phase::Closing) => {}
            }
            let Some((rows, last)) = self.inner.take() else { return };
            self.write(&rows).await;
            self.inner.done.send_replace(last);
        }
    }

    /// Appends rows, however long it takes. Meanwhile the buffer fills.
    async fn write(&self, rows: &[UsageEvent]) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut tries_at_the_end = 0;
        loop {
            match self.insert(rows).await {
                Ok(()) => return,
                Err(error) if error.is_unavailable() => {
                    if self.inner.lifecycle.phase() >= Phase::Closing {
                        tries_at_the_end += 1;
                        if tries_at_the_end == TRIES_AT_THE_END {
                            tracing::error!(%error, rows = rows.len(), "usage is lost: the database stayed away");
                            return dropped(rows.len());
                        }
                    }
                    metrics::counter!("usage_write_failures_total").increment(1);
                    tracing::debug!(%error, "usage waits for the database");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(error) if rows.len() == 1 => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a usage row is lost");
                    return dropped(1);
                }
                // One bad row must not take the others with it.
                Err(_) => {
                    for row in rows {
                        Box::pin(self.write(std::slice::from_ref(row))).await;
                    }
                    return;
                }
            }
        }
    }

    async fn insert(&self, rows: &[UsageEvent]) -> db::Result<()> {
        self.inner.database.call("usage.insert", async |c| db::usage::insert(c, rows).await).await
    }
}

fn dropped(count: usize) {
    metrics::counter!("usage_events_dropped_total").increment(count as u64);
}

#[cfg(test)]
mod tests {
    use config::{ApiConfig, MapVars};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use uuid::Uuid;

    use super::*;

    fn row() -> UsageEvent {
        UsageEvent {
            id: Uuid::now_v7(),
            occurred_at: runtime::Clock::system().now(),
            user_id: Uuid::nil(),
            api_key_id: None,
            request_id: String::new(),
            route: String::new(),
            model: String::new(),
            engine: String::new(),
            prompt_tokens: 1,
            completion_tokens: 1,
            estimated: false,
            cached: false,
            outcome: "ok",
            first_token_ms: None,
            duration_ms: 1,
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_nobody_waits() {
        let vars = MapVars::from([
            ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"),
            ("REDIS_URL", "redis://127.0.0.1:1"),
            ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ]);
        let config = ApiConfig::from_vars(&vars).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let accounting = {
            let _inside = runtime.enter();
            let database = Database::from_config(&config.stores.database, "test").unwrap();
            Accounting::new(database, Lifecycle::new(config.runtime.shutdown))
        };
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        // Outside a runtime there is no writer.
        metrics::with_local_recorder(&recorder, || (0..CAPACITY + 5).for_each(|_| accounting.record(row())));
        assert_eq!(accounting.inner.lock().rows.len(), CAPACITY);
        let metrics = metrics.render();
        assert!(metrics.contains("usage_events_dropped_total 5\n"), "{metrics}");
    }
}
