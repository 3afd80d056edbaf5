//! A worker: its handlers, its queues, and the tasks that make it go.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use runtime::{Lifecycle, Phase};
use serde::Serialize;
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    CronLine, JobContext, JobError, JobSpec, Settings, ack, admin, cron, db,
    handler::{Handler, Handlers},
    held::Held,
    lease::{self, Identity},
    queue::{Queue, Shared},
    settings::spread,
    slots::{self, Slots},
    wake::{self, Wakes},
};

/// So many acknowledgements may wait for the database before jobs wait with them.
const ACKS: usize = 1_000;
/// A tick is never further away than this, whatever the clocks say.
const CRON_NAP: Duration = Duration::from_secs(30);
/// How often the queues are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

/// A worker in the making. See the crate's documentation for an example.
#[derive(Clone)]
pub struct Worker {
    pub(crate) pool: PgPool,
    direct: PgConnectOptions,
    settings: Settings,
    pub(crate) handlers: Handlers,
    /// With the number of slots; none: those of the settings.
    queues: BTreeMap<String, Option<usize>>,
    schedule: Vec<CronLine>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("kinds", &self.handlers.0.keys())
            .field("queues", &self.queues)
            .field("schedule", &self.schedule)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker on this pool. `direct` leads to Postgres itself and not to a transaction pooler: the heartbeat and the
    /// listener keep a connection each.
    pub fn new(pool: PgPool, direct: PgConnectOptions, settings: Settings) -> Self {
        Self {
            pool,
            direct,
            settings,
            handlers: Handlers::default(),
            queues: BTreeMap::new(),
            schedule: Vec::new(),
        }
    }

    /// Serves a queue with so many jobs at a time, apart from all others. Queues of registered kinds are served anyway;
    /// they share the number from the settings.
    pub fn queue(mut self, name: &str, concurrency: usize) -> Self {
        self.queues.insert(name.to_owned(), Some(concurrency.max(1)));
        self
    }

    /// Runs jobs of a kind, whatever queue they are in. What the handler returns is stored as the job's result; `()`
    /// stores nothing.
    pub fn register<J, T, F, Fut>(mut self, handler: F) -> Self
    where
        J: JobSpec,
        T: Serialize,
        F: Fn(JobContext, J) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, JobError>> + Send + 'static,
    {
        self.queues.entry(J::QUEUE.to_owned()).or_insert(None);
        self.handlers.0.insert(J::NAME, Arc::new(Handler::new(handler)));
        self
    }

    /// The kinds that it runs.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.handlers.0.keys().copied()
    }

    /// Enqueues what these lines say. Every worker may have the same lines.
    pub fn schedule(mut self, lines: impl IntoIterator<Item = CronLine>) -> Self {
        self.schedule.extend(lines);
        self
    }

    /// Starts working, and goes on until the lifecycle ends. The database may be away: the worker waits for it.
    ///
    /// At [`Phase::Closing`] no job is claimed any more and prefetched ones are handed back; at [`Phase::LastCall`]
    /// running jobs are cancelled and, if they do not finish, handed back with their attempt.
    pub fn start(self, lifecycle: &Lifecycle) -> WorkerHandle {
        let stop = CancellationToken::new();
        let held = Held::default();
        let (acks, acks_out) = mpsc::channel(ACKS);
        let identity = Identity {
            name: self.settings.name.clone(),
            version: self.settings.version.clone(),
            queues: self.queues.keys().cloned().collect(),
        };
        let lease = self.settings.lease;
        let sessions = lease::start(lifecycle, self.direct.clone(), identity, lease, stop.clone());
        let handle = WorkerHandle {
            last_claim: Age::default(),
            last_tick: Age::default(),
            cron_wake: Arc::default(),
            held: held.clone(),
        };
        let shared = Shared {
            pool: self.pool.clone(),
            handlers: Arc::new(self.handlers.clone()),
            sessions,
            held: held.clone(),
            acks,
            lifecycle: lifecycle.clone(),
            poll_interval: self.settings.poll_interval,
            reconcile_every: lease / 3,
            prefetch: self.settings.prefetch,
            last_claim: handle.last_claim.clone(),
        };
        let mut wakes = Wakes { queues: HashMap::new(), held: held.clone() };
        let sharing = self.queues.values().filter(|own| own.is_none()).count();
        let shared_slots = slots::Shared::new(self.settings.concurrency.saturating_sub(sharing));
        for (name, own) in &self.queues {
            let wake = Arc::new(Notify::new());
            wakes.queues.insert(name.clone(), wake.clone());
            let slots = |freed| match own {
                Some(own) => Slots::new(*own, None, freed),
                None => Slots::new(1, Some(shared_slots.clone()), freed),
            };
            let queue = Queue::new(shared.clone(), name.clone(), slots, wake);
            lifecycle.spawn("job queue", queue.run());
        }
        // Held until no new work begins: a worker with nothing but a schedule acknowledges nothing and lives on. After
        // that only running jobs can acknowledge, and when the last of them is gone all is written.
        let (until_closing, life) = (shared, lifecycle.clone());
        lifecycle.spawn_task(async move {
            life.reached(Phase::Closing).await;
            drop(until_closing);
        });
        let (pool, all_written) = (self.pool.clone(), stop.clone());
        lifecycle.spawn("job acknowledgements", async move {
            ack::run(pool, acks_out).await;
            all_written.cancel();
        });
        lifecycle.spawn("job listener", wake::run(self.direct.clone(), wakes, stop.clone()));
        lifecycle.spawn("job upkeep", upkeep(self.clone(), held, stop));
        if !self.schedule.is_empty() {
            lifecycle.spawn("job schedule", run_schedule(self, handle.clone(), lifecycle.clone()));
        }
        handle
    }
}

/// A running worker.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    last_claim: Age,
    last_tick: Age,
    cron_wake: Arc<Notify>,
    held: Held,
}

impl WorkerHandle {
    /// How long ago a queue was last looked at with success; `None` before the first time. A worker whose age keeps
    /// growing does not work.
    pub fn last_claim_age(&self) -> Option<Duration> {
        self.last_claim.get()
    }

    /// How long ago the schedule was last looked at with success; `None` before the first time or without a schedule.
    pub fn last_tick_age(&self) -> Option<Duration> {
        self.last_tick.get()
    }

    /// Looks at the schedule now. Waking it too often or too early does no harm: the database decides what is due.
    pub fn wake_schedule(&self) {
        self.cron_wake.notify_one();
    }

    /// Jobs that this worker holds.
    pub fn held_jobs(&self) -> usize {
        self.held.keys().len()
    }
}

/// When something last happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Age(Arc<Mutex<Option<Instant>>>);

impl Age {
    pub(crate) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn get(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }
}

async fn run_schedule(worker: Worker, handle: WorkerHandle, lifecycle: Lifecycle) {
    let lines = worker.schedule;
    let mut registered = false;
    while lifecycle.phase() < Phase::Closing {
        let looked = db::call(&worker.pool, async |conn| {
            if !registered {
                cron::register(conn, &lines).await?;
            }
            cron::evaluate(conn, &lines).await
        })
        .await;
        let nap = match looked {
            Ok(next) => {
                registered = true;
                handle.last_tick.now();
                next.map_or(CRON_NAP, |next| next.min(CRON_NAP))
            }
            Err(error) => {
                tracing::warn!(error = %ack::chain(&error), "the schedule cannot be looked at, trying again");
                worker.settings.poll_interval
            }
        };
        tokio::select! {
            () = lifecycle.reached(Phase::Closing) => {}
            () = handle.cron_wake.notified() => {}
            () = sleep(nap) => {}
        }
    }
}

/// Rescues the jobs of lost workers, passes on cancellations that were not heard, and measures the queues.
async fn upkeep(worker: Worker, held: Held, stop: CancellationToken) {
    let pool = &worker.pool;
    let every = (worker.settings.lease / 6).min(Duration::from_secs(5));
    let queues: Vec<String> = worker.queues.keys().cloned().collect();
    let (mut introduced, mut measure_at) = (false, Instant::now());
    while !stop.is_cancelled() {
        let round = async {
            pass_on_cancellations(pool, &held).await?;
            lease::rescue(pool).await?;
            if !introduced {
                db::call(pool, async |conn| admin::introduce_queues(conn, &queues).await).await?;
                introduced = true;
            }
            if Instant::now() >= measure_at {
                measure_at = Instant::now() + MEASURE_EVERY;
                measure(pool).await?;
            }
            Ok::<_, crate::Error>(())
        };
        if let Err(error) = round.await {
            tracing::warn!(error = %ack::chain(&error), "upkeep failed, trying again");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = held.looked_for() => {}
            () = sleep(spread(every)) => {}
        }
    }
}

async fn pass_on_cancellations(pool: &PgPool, held: &Held) -> Result<(), crate::Error> {
    let ids: Vec<_> = held.keys().into_iter().map(|(id, _)| id).collect();
    if !ids.is_empty() {
        for id in db::call(pool, async |conn| lease::cancel_requests(conn, &ids).await).await? {
            held.cancel(id);
        }
    }
    Ok(())
}

async fn measure(pool: &PgPool) -> Result<(), crate::Error> {
    for queue in db::call(pool, async |conn| admin::queues(conn).await).await? {
        let name = queue.name;
        metrics::gauge!("jobs_ready", "queue" => name.clone()).set(queue.ready as f64);
        metrics::gauge!("jobs_scheduled", "queue" => name.clone()).set(queue.scheduled as f64);
        metrics::gauge!("jobs_oldest_ready_seconds", "queue" => name).set(queue.oldest_ready_seconds);
    }
    Ok(())
}
