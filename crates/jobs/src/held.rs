//! The jobs this worker holds: claimed, running, or with an acknowledgement on its way.

use std::{
    collections::HashMap,
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
    pub(crate) fn add(&self, key: Key) -> HeldJob {
        let cancelled = CancellationToken::new();
        self.lock().insert((key.id, key.fence), cancelled.clone());
        HeldJob { held: self.clone(), key, cancelled }
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
