//! The jobs this worker holds: claimed, running, or with an acknowledgement on its way.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{JobId, ack::Key, db::DEADLINE};

/// So many cancellations of jobs that are not ours are kept in mind. Upkeep finds the others.
const UNKNOWN: usize = 1_000;

/// All of them, with the token by which somebody cancels one. Keyed by id and fence: a job that was retried and claimed
/// again is another entry than its former self.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    jobs: Arc<Mutex<HashMap<(JobId, i64), CancellationToken>>>,
    /// Cancellations of jobs that we do not hold. One of them may be ours in a moment: its claim is committed, and the
    /// answer on its way. No claim takes longer than [`DEADLINE`].
    unknown: Arc<Mutex<VecDeque<(Instant, JobId)>>>,
    look: Arc<Notify>,
}

/// One of them; dropping it takes the job off the list.
#[derive(Debug)]
pub(crate) struct HeldJob {
    held: Held,
    key: Key,
    cancelled: CancellationToken,
}

impl Held {
    /// `None` when it is there already: the database forgot the claim in a crash and gave us the same one again. The
    /// attempt that runs is acknowledged with it.
    pub(crate) fn add(&self, key: Key) -> Option<HeldJob> {
        let cancelled = CancellationToken::new();
        match self.lock().entry((key.id, key.fence)) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(entry) => entry.insert(cancelled.clone()),
        };
        // After the insertion, as `cancel` looks first: one of the two sees the other.
        if self.unknown().iter().any(|(_, id)| *id == key.id) {
            self.look_for_cancellations();
        }
        Some(HeldJob { held: self.clone(), key, cancelled })
    }

    /// Somebody wants the job to stop.
    pub(crate) fn cancel(&self, id: JobId) {
        let mut unknown = self.unknown();
        let mut known = false;
        for (_, token) in self.lock().iter().filter(|((held, _), _)| *held == id) {
            token.cancel();
            known = true;
        }
        if !known {
            while unknown.len() >= UNKNOWN || unknown.front().is_some_and(|(at, _)| at.elapsed() > DEADLINE) {
                unknown.pop_front();
            }
            unknown.push_back((Instant::now(), id));
        }
    }

    /// Asks upkeep to look in the database for cancellations, now: one may have been missed.
    pub(crate) fn look_for_cancellations(&self) {
        self.look.notify_one();
    }

    /// Until somebody asks for it.
    pub(crate) async fn looked_for(&self) {
        self.look.notified().await;
    }

    pub(crate) fn keys(&self) -> Vec<(JobId, i64)> {
        self.lock().keys().copied().collect()
    }

    fn unknown(&self) -> MutexGuard<'_, VecDeque<(Instant, JobId)>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(JobId, i64), CancellationToken>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldJob {
    /// Cancelled when somebody cancels this job.
    pub(crate) fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }
}

impl Drop for HeldJob {
    fn drop(&mut self) {
        self.held.lock().remove(&(self.key.id, self.key.fence));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    const KEY: Key = Key { id: 7, fence: 1, worker: Uuid::nil() };

    #[tokio::test]
    async fn a_cancellation_that_comes_before_the_answer_to_the_claim_is_looked_for() {
        let held = Held::default();
        held.cancel(KEY.id);
        assert!(held.looked_for().now_or_never().is_none(), "it may never be ours");
        let other = held.add(Key { id: 8, ..KEY }).unwrap();
        assert!(held.looked_for().now_or_never().is_none());
        let job = held.add(KEY).unwrap();
        assert!(held.looked_for().now_or_never().is_some());
        // What is looked for is found in the database; the notification may have meant a former claim of the job.
        assert!(!job.cancelled().is_cancelled() && !other.cancelled().is_cancelled());
    }

    #[tokio::test]
    async fn a_job_that_is_held_is_cancelled_at_once() {
        let held = Held::default();
        let (job, other) = (held.add(KEY).unwrap(), held.add(Key { id: 8, ..KEY }).unwrap());
        held.cancel(KEY.id);
        assert!(job.cancelled().is_cancelled() && !other.cancelled().is_cancelled());
        assert!(held.looked_for().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn cancellations_of_other_workers_jobs_are_forgotten() {
        let held = Held::default();
        (0..5_000).for_each(|id| held.cancel(id));
        assert_eq!(held.unknown().len(), UNKNOWN);
        tokio::time::advance(DEADLINE * 2).await;
        held.cancel(KEY.id);
        assert_eq!(held.unknown().len(), 1);
    }

    #[test]
    fn a_claim_that_is_held_is_not_held_twice_and_the_next_claim_of_the_job_is_another_one() {
        let held = Held::default();
        let key = Key { id: 1, fence: 1, worker: uuid::Uuid::nil() };
        let first = held.add(key).expect("new");
        assert!(held.add(key).is_none());
        let second = held.add(Key { fence: 2, ..key }).expect("another claim");
        drop(first);
        assert_eq!(held.keys(), [(1, 2)]);
        held.cancel(1);
        assert!(second.cancelled().is_cancelled());
    }
}
