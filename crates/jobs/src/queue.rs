//! The claim loop of one queue in one worker.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use runtime::{Lifecycle, Phase, backoff::Backoff};
use sqlx::PgPool;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Error,
    ack::{Ack, Back, Pending, chain},
    buffer::{Ahead, Buffer, Ready, RecentDuration},
    claim::{self, Claimed},
    db::Kept,
    execute::{self, Stops},
    floor::{Floor, Looked},
    handler::{Handlers, Kinds},
    held::Held,
    lease::Session,
    settings::spread,
    slots::{Slot, Slots},
    worker::Age,
};

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
    kinds: Kinds,
    conn: Kept,
    slots: Slots,
    /// A slot that was waited for, until a job begins in it.
    spare: Option<Slot>,
    wake: Arc<Notify>,
    /// A slot got free, or the buffer runs low.
    refill: Arc<Notify>,
    buffer: Buffer,
    ahead: Ahead,
    floor: Floor,
    waits: metrics::Histogram,
    /// The last look left something behind, as far as we know.
    more: bool,
    /// The database's time when what comes next was last asked for.
    looked_at: DateTime<Utc>,
    reconcile_at: Instant,
}

impl Queue {
    pub(crate) fn new(
        shared: Shared,
        name: String,
        slots: impl FnOnce(Arc<Notify>) -> Slots,
        wake: Arc<Notify>,
    ) -> Self {
        let refill = Arc::new(Notify::new());
        Self {
            kinds: shared.handlers.kinds_of(&name),
            conn: Kept::new(shared.pool.clone()),
            slots: slots(refill.clone()),
            spare: None,
            wake,
            buffer: Buffer::new(refill.clone()),
            refill,
            ahead: Ahead::new(shared.prefetch),
            floor: Floor::new(shared.reconcile_every),
            waits: metrics::histogram!("job_wait_seconds", "queue" => name.clone()),
            more: true,
            looked_at: DateTime::UNIX_EPOCH,
            // A worker that starts takes a look at everything.
            reconcile_at: Instant::now(),
            shared,
            name,
        }
    }

    /// Claims and starts jobs until the process takes no new work, then hands back what has not begun. Running jobs are
    /// tasks of their own.
    pub(crate) async fn run(mut self) {
        let lifecycle = self.shared.lifecycle.clone();
        let mut sessions = self.shared.sessions.clone();
        let mut backoff = Backoff::new(Duration::from_millis(50), self.shared.poll_interval);
        while lifecycle.phase() < Phase::Closing {
            // Whatever notifies from here on is kept by `wake`, so nothing is missed between this look and the wait.
            let wait = match self.fill().await {
                Ok(wait) => {
                    backoff.reset();
                    wait
                }
                Err(error) => {
                    tracing::warn!(queue = self.name, error = %chain(&error), "claiming failed, trying again");
                    self.more = true;
                    backoff.next_delay()
                }
            };
            self.spare = None;
            let hand_back_at = self.buffer.hand_back_at();
            let work = self.more || hand_back_at.is_some();
            let no_slot = self.slots.free() == 0;
            if !work {
                self.conn.give_back();
            }
            tokio::select! {
                () = lifecycle.reached(Phase::Closing) => {}
                () = self.wake.notified() => {}
                () = self.refill.notified(), if work => {}
                slot = self.slots.take(), if work && no_slot => self.spare = Some(slot),
                () = sleep_until(hand_back_at.unwrap_or_else(Instant::now)), if hand_back_at.is_some() => {
                    self.hand_back().await;
                    self.ahead.too_many();
                }
                changed = sessions.changed() => if changed.is_err() { sleep(wait).await },
                () = sleep(wait) => {}
            }
        }
        self.hand_back().await;
    }

    /// Fills the free slots and claims ahead. Returns how long to wait when nobody wakes us.
    async fn fill(&mut self) -> Result<Duration, Error> {
        let poll = spread(self.shared.poll_interval);
        loop {
            self.start();
            let session = self.shared.sessions.borrow().clone();
            // Without a lease nothing is claimed: it would be rescued at once.
            let Some(session) = session else { return Ok(poll) };
            let free = self.slots.free() + usize::from(self.spare.is_some());
            let (ahead, waiting) = (self.ahead.depth(self.slots.total()), self.buffer.len());
            self.buffer.set_low(ahead / 2);
            let wanted = (free + ahead).saturating_sub(waiting);
            if wanted == 0 || (free == 0 && waiting > ahead / 2) {
                self.more = true;
                self.shared.last_claim.now();
                return Ok(poll);
            }
            let again = self.look(&session, wanted).await?;
            self.shared.last_claim.now();
            if let Some(again) = again {
                return Ok(again.min(poll));
            }
        }
    }

    /// Claims up to so many jobs and starts what it can. Says when to look again if it found fewer.
    async fn look(&mut self, session: &Session, wanted: usize) -> Result<Option<Duration>, Error> {
        let everything = Instant::now() >= self.reconcile_at;
        if everything {
            self.reconcile_at = Instant::now() + self.shared.reconcile_every;
            self.reconcile(session).await?;
        }
        let all = everything.then(|| self.shared.handlers.kinds());
        let kinds = all.as_ref().unwrap_or(&self.kinds);
        let (levels, from_front) = self.floor.begin();
        let (limited, contended) = claim_limited(&mut self.conn, session, &self.name, kinds, wanted).await?;
        let begun = Instant::now();
        let left = wanted - limited.len();
        let free = match left {
            _ if kinds.free.is_empty() => Vec::new(),
            0 => Vec::new(),
            n => {
                let work = async |conn: &mut _| {
                    claim::claim(conn, session.id, &self.name, &kinds.free, &levels, n).await
                };
                self.conn.call(work).await?
            }
        };
        let (found, last) = (free.len(), free.last().map(|job| job.place));
        let all_found = found < left;
        // A limit may be what stops us here; the end of a job is then a reason to look again.
        self.more = !all_found || !kinds.limited.is_empty();
        self.keep(session, limited.into_iter().chain(free).collect(), !all_found);
        self.start();
        let next = if all_found {
            let (name, kinds, since) = (&self.name, &self.kinds, self.looked_at);
            let next = async |conn: &mut _| claim::next_due(conn, name, kinds, &levels, since).await;
            let next = self.conn.call(next).await?;
            self.looked_at = next.now;
            Some(next)
        } else {
            None
        };
        let all_at = next.as_ref().map(|next| next.now);
        self.floor.looked(Looked { from_front, took: begun.elapsed(), found, last, all_at });
        Ok(next.map(|next| {
            if next.paused {
                self.floor.reset();
            }
            // A job that is due and was not claimed is being claimed by somebody else: do not ask without a pause.
            let soon = contended.then_some(LOOK_AGAIN);
            let due = next.wait.map(|due| due.max(LOOK_AGAIN));
            [due, soon].into_iter().flatten().min().unwrap_or(Duration::MAX)
        }))
    }

    /// Takes note of what was claimed.
    fn keep(&mut self, session: &Session, claimed: Vec<Claimed>, full: bool) {
        let bytes = claimed.iter().map(|job| job.args.get().len()).sum();
        self.ahead.claimed(claimed.len(), bytes, full);
        let since = Instant::now();
        self.buffer.extend(claimed.into_iter().filter_map(|job| {
            Some(Ready { held: self.shared.held.add(job.key)?, session: session.clone(), since, job })
        }));
    }

    /// Starts a task for each free slot that has work.
    fn start(&mut self) {
        while self.buffer.len() > 0 {
            let Some(slot) = self.spare.take().or_else(|| self.slots.try_take()) else { return };
            let Some(first) = self.buffer.pop() else { return };
            let (shared, buffer) = (self.shared.clone(), self.buffer.clone());
            let (recent, waits) = (self.ahead.recent(), self.waits.clone());
            self.shared.lifecycle.spawn_task(run_jobs(shared, buffer, recent, waits, slot, first));
        }
    }

    /// What was claimed and has not begun goes back, with its attempt.
    async fn hand_back(&mut self) {
        for Ready { job, held, session, .. } in self.buffer.take_all() {
            if !session.lost.is_cancelled() {
                let pending = Pending { ack: Ack::Back(Back::released(job.key)), _held: held };
                let _ = self.shared.acks.send(pending).await;
            }
        }
    }

    /// Gives back jobs whose claim was answered into a broken connection. Here, because no claim of this queue may be under
    /// way meanwhile.
    async fn reconcile(&mut self, session: &Session) -> Result<(), Error> {
        let (name, held) = (&self.name, self.shared.held.keys());
        let released =
            self.conn.call(async |conn| claim::release_unknown(conn, session.id, name, &held).await).await?;
        if released > 0 {
            tracing::warn!(queue = self.name, released, "gave back jobs whose claim was never answered");
        }
        Ok(())
    }
}

/// Claims jobs of kinds with a limit, and says whether somebody else was at it.
async fn claim_limited(
    conn: &mut Kept,
    session: &Session,
    queue: &str,
    kinds: &Kinds,
    wanted: usize,
) -> Result<(Vec<Claimed>, bool), Error> {
    let (mut claimed, mut contended) = (Vec::new(), false);
    for kind in &kinds.limited {
        let n = wanted - claimed.len();
        if n == 0 {
            break;
        }
        let some = conn.call(async |c| claim::claim_limited(c, session.id, queue, kind, n).await).await?;
        contended |= some.is_none();
        claimed.extend(some.unwrap_or_default());
    }
    Ok((claimed, contended))
}

/// Runs this job and, while there are more at hand, the next one in the same slot.
async fn run_jobs(
    shared: Shared,
    buffer: Buffer,
    recent: RecentDuration,
    waits: metrics::Histogram,
    slot: Slot,
    first: Ready,
) {
    let mut next = Some(first);
    while let Some(Ready { job, held, session, since }) = next {
        // Nobody runs a job whose lease is lost: it is somebody else's.
        let handler = shared.handlers.0.get(job.kind.as_str()).filter(|_| !session.lost.is_cancelled());
        if let Some(handler) = handler.cloned() {
            let begun = Instant::now();
            waits.record((job.waited() + (begun - since)).as_secs_f64());
            let stops = Stops::of(&shared.lifecycle);
            let pending = execute::run(job, held, handler, session, stops, shared.pool.clone()).await;
            recent.add(begun.elapsed());
            // A full channel means that the database does not keep up: then the slot stays taken.
            if let Some(pending) = pending {
                let _ = shared.acks.send(pending).await;
            }
        }
        if shared.lifecycle.phase() >= Phase::Closing || slot.is_wanted() {
            return;
        }
        next = buffer.pop();
    }
}
