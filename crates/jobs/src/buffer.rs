//! Jobs that are claimed and wait for a slot: how many there should be, and who takes them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{claim::Claimed, held::HeldJob, lease::Session};

/// Jobs are claimed ahead only while they are shorter than this: behind long ones they would wait while another worker is
/// free.
const SHORT: Duration = Duration::from_millis(50);
/// Claimed ahead is what is done within this time: long enough for the next claim, short enough for urgent jobs.
const AHEAD: Duration = Duration::from_millis(100);
/// A job that found no slot for so long is handed back.
const HOLD: Duration = Duration::from_millis(500);
/// The first claim ahead; it doubles while claims come back full.
const FIRST: usize = 20;
/// Payloads kept at hand, as far as their size can be foreseen.
const BYTES: usize = 16 * 1024 * 1024;

/// A job that can begin.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) job: Claimed,
    /// When we learnt that it is ours.
    pub(crate) since: Instant,
    pub(crate) held: HeldJob,
    pub(crate) session: Session,
}

/// The jobs of one queue that wait for a slot; clones are the same buffer.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    jobs: Arc<Mutex<VecDeque<Ready>>>,
    low: Arc<AtomicUsize>,
    runs_low: Arc<Notify>,
}

impl Buffer {
    /// `runs_low` is told when it is time for another claim.
    pub(crate) fn new(runs_low: Arc<Notify>) -> Self {
        Self { jobs: Arc::default(), low: Arc::default(), runs_low }
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs().len()
    }

    pub(crate) fn extend(&self, jobs: impl Iterator<Item = Ready>) {
        self.jobs().extend(jobs);
    }

    /// The next one.
    pub(crate) fn pop(&self) -> Option<Ready> {
        let (next, left) = {
            let mut jobs = self.jobs();
            (jobs.pop_front(), jobs.len())
        };
        if next.is_some() && left == self.low.load(Ordering::Relaxed) {
            self.runs_low.notify_one();
        }
        next
    }

    /// When no more than so many are left, it is time for another claim.
    pub(crate) fn set_low(&self, low: usize) {
        self.low.store(low, Ordering::Relaxed);
    }

    /// When those that nobody took are to be handed back.
    pub(crate) fn hand_back_at(&self) -> Option<Instant> {
        self.jobs().front().map(|first| first.since + HOLD)
    }

    /// Everything that has not begun.
    pub(crate) fn take_all(&self) -> VecDeque<Ready> {
        std::mem::take(&mut *self.jobs())
    }

    fn jobs(&self) -> MutexGuard<'_, VecDeque<Ready>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many jobs to claim beyond the free slots.
#[derive(Debug)]
pub(crate) struct Ahead {
    limit: usize,
    most: usize,
    recent: RecentDuration,
}

impl Ahead {
    pub(crate) fn new(most: usize) -> Self {
        Self { limit: FIRST.min(most), most, recent: RecentDuration::default() }
    }

    pub(crate) fn recent(&self) -> RecentDuration {
        self.recent.clone()
    }

    pub(crate) fn depth(&self, slots: usize) -> usize {
        let recent = self.recent.get();
        if recent >= SHORT {
            return 0;
        }
        let in_time = AHEAD.as_micros() * slots as u128 / recent.as_micros().max(1);
        usize::try_from(in_time).unwrap_or(usize::MAX).min(self.limit)
    }

    /// A claim brought jobs of so many bytes together. When it was full there is more where they came from.
    pub(crate) fn claimed(&mut self, jobs: usize, bytes: usize, full: bool) {
        if full {
            self.limit = (self.limit * 2).min(self.most);
        }
        let by_size = BYTES / (bytes / jobs.max(1)).max(1);
        self.limit = self.limit.min(by_size.max(1)).min(self.most);
    }

    /// Jobs had to be handed back: they are not as short as they seemed.
    pub(crate) fn too_many(&mut self) {
        self.limit = FIRST.min(self.most);
        self.recent.reset();
    }
}

/// A moving average of how long jobs take, in microseconds. Starts high: claiming ahead begins when jobs prove short.
#[derive(Clone, Debug)]
pub(crate) struct RecentDuration(Arc<AtomicU64>);

const UNKNOWN_US: u64 = 1_000_000;

impl Default for RecentDuration {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(UNKNOWN_US)))
    }
}

impl RecentDuration {
    pub(crate) fn add(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(3_600_000_000);
        let old = self.0.load(Ordering::Relaxed);
        self.0.store((old * 7 + took) / 8, Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    fn reset(&self) {
        self.0.store(UNKNOWN_US, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(took: Duration) -> Ahead {
        let ahead = Ahead::new(1_000);
        (0..200).for_each(|_| ahead.recent.add(took));
        ahead
    }

    #[test]
    fn as_many_are_claimed_ahead_as_are_done_in_a_tenth_of_a_second() {
        let ms = Duration::from_millis;
        assert_eq!(Ahead::new(1_000).depth(10), 0, "nothing is known yet");
        assert_eq!(after(ms(200)).depth(10), 0, "long ones would wait behind each other");
        assert_eq!(after(ms(20)).depth(2), 10);
        let mut short = after(Duration::from_micros(10));
        assert_eq!(short.depth(10), FIRST);
        for _ in 0..10 {
            short.claimed(100, 100 * 50, true);
        }
        assert_eq!(short.depth(10), 1_000, "it has grown with full claims");
        short.claimed(10, 10 * 256 * 1024, true);
        assert_eq!(short.depth(10), 64, "16 MiB of them");
        short.too_many();
        assert_eq!(short.depth(10), 0);
        assert_eq!(Ahead::new(0).depth(10), 0);
    }
}
