//! The claim loop of one queue in one worker.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use runtime::{Lifecycle, Phase};
use sqlx::PgPool;
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Error,
    ack::{Ack, Back, Pending, chain},
    claim::{self, Claimed},
    db,
    execute::{self, Stops},
    handler::Handlers,
    held::{Held, HeldJob},
    lease::Session,
    worker::Age,
};

/// Jobs are prefetched only while they are shorter than this: behind long ones they would wait while another worker is
/// free.
const SHORT: Duration = Duration::from_millis(50);
/// A prefetched job that found no slot for so long is handed back.
const PREFETCH_HOLD: Duration = Duration::from_millis(500);

/// The shortest time between two looks that nobody asked for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What all queues of a worker share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) pool: PgPool,
    pub(crate) handlers: Arc<Handlers>,
    pub(crate) sessions: watch::Receiver<Option<Session>>,
    pub(crate) held: Held,
    pub(crate) acks: mpsc::Sender<Pending>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) poll_interval: Duration,
    pub(crate) reconcile_every: Duration,
    pub(crate) prefetch: usize,
    pub(crate) last_claim: Age,
}

pub(crate) struct Queue {
    shared: Shared,
    name: String,
    free_kinds: Vec<String>,
    limited_kinds: Vec<(String, u16)>,
    slots: Arc<Semaphore>,
    wake: Arc<Notify>,
    slot_freed: Arc<Notify>,
    /// Claimed, but no slot was free.
    prefetched: VecDeque<(Claimed, HeldJob, Session)>,
    prefetched_at: Instant,
    /// The last claim left something behind, as far as we know.
    more: bool,
    reconcile_at: Instant,
    recent: RecentDuration,
}

impl Queue {
    pub(crate) fn new(shared: Shared, name: String, concurrency: usize, wake: Arc<Notify>) -> Self {
        let now = Instant::now();
        Self {
            free_kinds: shared.handlers.free_kinds(),
            limited_kinds: shared.handlers.limited_kinds(),
            reconcile_at: now + shared.reconcile_every,
            shared,
            name,
            slots: Arc::new(Semaphore::new(concurrency)),
            wake,
            slot_freed: Arc::default(),
            prefetched: VecDeque::new(),
            prefetched_at: now,
            more: true,
            recent: RecentDuration::default(),
        }
    }

    /// Claims and starts jobs until the process takes no new work, then hands back what has not begun. Running jobs are
    /// tasks of their own.
    pub(crate) async fn run(mut self) {
        let lifecycle = self.shared.lifecycle.clone();
        let mut sessions = self.shared.sessions.clone();
        while lifecycle.phase() < Phase::Closing {
            // Whatever notifies from here on is kept by `wake`, so nothing is missed between this look and the wait.
            let wait = match self.fill().await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(queue = self.name, error = %chain(&error), "claiming failed, trying again");
                    self.more = true;
                    self.shared.poll_interval
                }
            };
            let hand_back_at = self.prefetched_at + PREFETCH_HOLD;
            tokio::select! {
                () = lifecycle.reached(Phase::Closing) => {}
                () = self.wake.notified() => {}
                () = self.slot_freed.notified(), if self.more || !self.prefetched.is_empty() => {}
                () = sleep_until(hand_back_at), if !self.prefetched.is_empty() => self.hand_back().await,
                changed = sessions.changed() => if changed.is_err() { sleep(wait).await },
                () = sleep(wait) => {}
            }
        }
        self.hand_back().await;
    }

    /// Fills the free slots. Returns how long to wait when nobody wakes us.
    async fn fill(&mut self) -> Result<Duration, Error> {
        let poll = self.shared.poll_interval.mul_f64(0.75 + 0.5 * rand::random::<f64>());
        loop {
            self.start_prefetched();
            let free = self.slots.available_permits();
            let session = self.shared.sessions.borrow().clone();
            // Without a lease nothing is claimed: it would be rescued at once.
            let Some(session) = session else { return Ok(poll) };
            if free == 0 {
                self.more = true;
                self.shared.last_claim.now();
                return Ok(poll);
            }
            self.reconcile(&session).await?;
            let wanted = free + if self.recent.is_short() { self.shared.prefetch } else { 0 };
            let claimed = self.claim(&session, wanted).await?;
            self.shared.last_claim.now();
            let all_taken = claimed < wanted;
            self.start_prefetched();
            if all_taken {
                return Ok(self.next_due().await?.map_or(poll, |due| due.min(poll)));
            }
        }
    }

    /// When the next job is due. Kinds with a global limit are left to the poll: theirs may be due and still have to wait.
    async fn next_due(&self) -> Result<Option<Duration>, Error> {
        if self.free_kinds.is_empty() {
            return Ok(None);
        }
        let due = db::call(&self.shared.pool, async |conn| {
            claim::next_due(conn, &self.name, &self.free_kinds).await
        });
        // A job that is due and was not claimed is being claimed by somebody else: do not ask without a pause.
        Ok(due.await?.map(|due| due.max(LOOK_AGAIN)))
    }

    async fn claim(&mut self, session: &Session, wanted: usize) -> Result<usize, Error> {
        let (name, pool) = (&self.name, &self.shared.pool);
        let (kinds, limited) = (&self.free_kinds, &self.limited_kinds);
        // The limit may be what stops us here; the end of a job is then a reason to look again.
        self.more = !limited.is_empty();
        let claimed = db::call(pool, async |conn| {
            let mut claimed = Vec::new();
            for kind in limited {
                let n = wanted - claimed.len();
                if n > 0 {
                    claimed.extend(claim::claim_limited(conn, session.id, name, kind, n).await?);
                }
            }
            if wanted > claimed.len() && !kinds.is_empty() {
                claimed.extend(claim::claim(conn, session.id, name, kinds, wanted - claimed.len()).await?);
            }
            Ok::<_, Error>(claimed)
        })
        .await?;
        let n = claimed.len();
        self.more |= n == wanted;
        self.prefetched_at = Instant::now();
        for job in claimed {
            metrics::histogram!("job_wait_seconds", "queue" => name.clone()).record(job.waited.as_secs_f64());
            let held = self.shared.held.add(job.key);
            self.prefetched.push_back((job, held, session.clone()));
        }
        Ok(n)
    }

    fn start_prefetched(&mut self) {
        while !self.prefetched.is_empty() {
            let Ok(slot) = self.slots.clone().try_acquire_owned() else { return };
            let Some((job, held, session)) = self.prefetched.pop_front() else { return };
            let handler = self.shared.handlers.0.get(job.kind.as_str());
            // Nobody runs a job whose lease is lost: it is somebody else's.
            let Some(handler) = handler.filter(|_| !session.lost.is_cancelled()).cloned() else { continue };
            let shared = self.shared.clone();
            let (recent, freed) = (self.recent.clone(), self.slot_freed.clone());
            self.shared.lifecycle.spawn_task(async move {
                let begun = Instant::now();
                let stops = Stops::of(&shared.lifecycle);
                let pending = execute::run(job, held, handler, session, stops, shared.pool).await;
                recent.add(begun.elapsed());
                // A full channel means that the database does not keep up: then the slot stays taken.
                if let Some(pending) = pending {
                    let _ = shared.acks.send(pending).await;
                }
                drop(slot);
                freed.notify_one();
            });
        }
    }

    /// What was claimed and has not begun goes back, with its attempt.
    async fn hand_back(&mut self) {
        for (job, held, session) in self.prefetched.drain(..) {
            if !session.lost.is_cancelled() {
                let pending = Pending { ack: Ack::Back(Back::released(job.key)), _held: held };
                let _ = self.shared.acks.send(pending).await;
            }
        }
    }

    /// Now and then: gives back jobs whose claim was answered into a broken connection. Here, because no claim of this
    /// queue may be under way meanwhile.
    async fn reconcile(&mut self, session: &Session) -> Result<(), Error> {
        if Instant::now() < self.reconcile_at {
            return Ok(());
        }
        self.reconcile_at = Instant::now() + self.shared.reconcile_every;
        let held = self.shared.held.keys();
        let released = db::call(&self.shared.pool, async |conn| {
            claim::release_unknown(conn, session.id, &self.name, &held).await
        })
        .await?;
        if released > 0 {
            tracing::warn!(queue = self.name, released, "gave back jobs whose claim was never answered");
        }
        Ok(())
    }
}

/// A moving average of how long jobs take, in microseconds. Starts high: prefetching begins when jobs prove short.
#[derive(Clone)]
struct RecentDuration(Arc<AtomicU64>);

impl Default for RecentDuration {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(1_000_000)))
    }
}

impl RecentDuration {
    fn add(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(3_600_000_000);
        let old = self.0.load(Ordering::Relaxed);
        self.0.store((old * 7 + took) / 8, Ordering::Relaxed);
    }

    fn is_short(&self) -> bool {
        Duration::from_micros(self.0.load(Ordering::Relaxed)) < SHORT
    }
}
