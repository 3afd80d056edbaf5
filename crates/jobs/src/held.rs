//! The jobs this worker holds: claimed, running, or with an acknowledgement on its way.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{JobId, ack::Key};

/// All of them, with the token by which somebody cancels one. Keyed by id and fence: a job that was retried and claimed
/// again is another entry than its former self.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    jobs: Arc<Mutex<HashMap<(JobId, i64), CancellationToken>>>,
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
        Some(HeldJob { held: self.clone(), key, cancelled })
    }

    /// Somebody wants the job to stop.
    pub(crate) fn cancel(&self, id: JobId) {
        self.lock().iter().filter(|((held, _), _)| *held == id).for_each(|(_, token)| token.cancel());
    }

    pub(crate) fn keys(&self) -> Vec<(JobId, i64)> {
        self.lock().keys().copied().collect()
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
    use super::*;

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
