//! Slots: how many jobs run at a time.
//!
//! A worker has so many in all. Each queue keeps one of them for itself, so that no other queue can starve it; the others
//! are shared, first come, first served. A queue that was given a number of its own keeps to that.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The slots that a worker's queues share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    slots: Arc<Semaphore>,
    /// Queues that have work and no slot.
    waiting: Arc<AtomicUsize>,
}

impl Shared {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(slots)), waiting: Arc::default() }
    }
}

/// The slots of one queue.
#[derive(Debug)]
pub(crate) struct Slots {
    own: Arc<Semaphore>,
    shared: Option<Shared>,
    /// One while this queue waits.
    waits: Arc<AtomicUsize>,
    total: usize,
    freed: Arc<Notify>,
}

impl Slots {
    /// So many of its own, and those that it shares. `freed` is told of each one that gets free.
    pub(crate) fn new(own: usize, shared: Option<Shared>, freed: Arc<Notify>) -> Self {
        let total = own + shared.as_ref().map_or(0, |s| s.slots.available_permits());
        Self { own: Arc::new(Semaphore::new(own)), shared, waits: Arc::default(), total, freed }
    }

    /// How many jobs of the queue run at a time when no other queue has any.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// How many are free at this moment.
    pub(crate) fn free(&self) -> usize {
        self.own.available_permits() + self.shared.as_ref().map_or(0, |s| s.slots.available_permits())
    }

    /// One, if one is free; the queue's own first.
    pub(crate) fn try_take(&self) -> Option<Slot> {
        if let Ok(permit) = self.own.clone().try_acquire_owned() {
            return Some(self.slot(permit, None));
        }
        let shared = self.shared.as_ref()?;
        let permit = shared.slots.clone().try_acquire_owned().ok()?;
        Some(self.slot(permit, Some(shared)))
    }

    /// One, as soon as one is free. While this waits, other queues give way after each job.
    pub(crate) async fn take(&self) -> Slot {
        const OPEN: &str = "semaphores of slots are never closed";
        let Some(shared) = &self.shared else {
            return self.slot(self.own.clone().acquire_owned().await.expect(OPEN), None);
        };
        let _waiting = Waiting::new([&shared.waiting, &self.waits]);
        tokio::select! {
            biased;
            permit = self.own.clone().acquire_owned() => self.slot(permit.expect(OPEN), None),
            permit = shared.slots.clone().acquire_owned() => self.slot(permit.expect(OPEN), Some(shared)),
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit, shared: Option<&Shared>) -> Slot {
        let waiting = shared.map(|s| [s.waiting.clone(), self.waits.clone()]);
        Slot { permit: Some(permit), waiting, freed: self.freed.clone() }
    }
}

/// Counts a queue that waits, until dropped.
struct Waiting<'a>([&'a AtomicUsize; 2]);

impl<'a> Waiting<'a> {
    fn new(counts: [&'a AtomicUsize; 2]) -> Self {
        for count in counts {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Self(counts)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        for count in self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The right to run one job at a time, until dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    /// Queues that wait for a shared slot, and whether this one does; none when the slot is the queue's own.
    waiting: Option<[Arc<AtomicUsize>; 2]>,
    freed: Arc<Notify>,
}

impl Slot {
    /// True when another queue waits for it: then it is given up after the job, and whoever waited longest gets it.
    pub(crate) fn is_wanted(&self) -> bool {
        let [all, ours] = match &self.waiting {
            Some(counts) => counts.each_ref().map(|count| count.load(Ordering::Relaxed)),
            None => return false,
        };
        all > ours
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // In this order: who is told must find it free.
        self.permit = None;
        self.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queue_has_one_slot_that_no_other_queue_can_take_and_shares_the_rest() {
        let shared = Shared::new(2);
        let [a, b] = [(); 2].map(|()| Slots::new(1, Some(shared.clone()), Arc::default()));
        let mut taken: Vec<Slot> = std::iter::from_fn(|| a.try_take()).collect();
        assert_eq!((taken.len(), a.total()), (3, 3));
        let last = b.try_take().expect("its own");
        assert!(b.try_take().is_none());
        assert!(taken.iter().all(|slot| !slot.is_wanted()) && !last.is_wanted());
        // A queue that waits gets the next shared one, and the others know that it waits.
        let mut wait = Box::pin(b.take());
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
        assert_eq!(taken.iter().filter(|slot| slot.is_wanted()).count(), 2, "the shared ones");
        assert!(!last.is_wanted(), "not by its own queue");
        taken.retain(|slot| !slot.is_wanted());
        assert!(a.free() <= 1, "one of the two goes to who waits");
        let _got = wait.await;
        assert!(taken.iter().all(|slot| !slot.is_wanted()));
    }
}
