//! The permits that this process holds.
//!
//! Redis counts those of all replicas. This table is the process's own view: it counts alone while Redis is out, it says
//! whether a permit may still be renewed, and whether one is on its way back.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, time::Instant};

use crate::Permit;

/// Permits of this process, by subject and id.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    held: Mutex<HashMap<String, HashMap<String, Held>>>,
    returned: Notify,
}

#[derive(Debug)]
struct Held {
    until: Instant,
    /// Given back by its holder, and Redis is being told.
    returning: bool,
}

impl Permits {
    /// Notes a permit that was taken, here or in Redis.
    pub(crate) fn hold(&self, permit: &Permit) {
        let held = Held { until: Instant::now() + permit.lease, returning: false };
        self.lock().entry(permit.subject.clone()).or_default().insert(permit.id.clone(), held);
    }

    /// How many this process holds for `subject`, besides the one with this id.
    pub(crate) fn count(&self, subject: &str, besides: &str) -> usize {
        let now = Instant::now();
        let mut all = self.lock();
        let Some(held) = all.get_mut(subject) else { return 0 };
        held.retain(|_, permit| permit.until > now);
        held.iter().filter(|(id, permit)| *id != besides && !permit.returning).count()
    }

    /// Prolongs a permit; false when it is not held any more.
    pub(crate) fn renew(&self, permit: &Permit) -> bool {
        let mut all = self.lock();
        let held = all.get_mut(&permit.subject).and_then(|held| held.get_mut(&permit.id));
        held.filter(|held| !held.returning).is_some_and(|held| {
            held.until = Instant::now() + permit.lease;
            true
        })
    }

    /// The holder is done: from now on it does not count here.
    pub(crate) fn give_back(&self, permit: &Permit) {
        if let Some(held) = self.lock().get_mut(&permit.subject).and_then(|held| held.get_mut(&permit.id)) {
            held.returning = true;
        }
    }

    /// Redis was told, or could not be.
    pub(crate) fn forget(&self, permit: &Permit) {
        let mut all = self.lock();
        if let Some(held) = all.get_mut(&permit.subject) {
            held.remove(&permit.id);
            if held.is_empty() {
                all.remove(&permit.subject);
            }
        }
        drop(all);
        self.returned.notify_waiters();
    }

    /// Returns when no permit of `subject` is on its way back to Redis.
    pub(crate) async fn all_returned(&self, subject: &str) {
        loop {
            let mut returned = std::pin::pin!(self.returned.notified());
            // Registered before the look, so that no return in between is missed.
            returned.as_mut().enable();
            let on_the_way =
                self.lock().get(subject).is_some_and(|held| held.values().any(|permit| permit.returning));
            if !on_the_way {
                return;
            }
            returned.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn permit(id: &str) -> Permit {
        let (policy, lease) = ("concurrent-streams", Duration::from_secs(90));
        Permit { policy, subject: "u".into(), id: id.into(), limit: 1, lease }
    }

    #[tokio::test(start_paused = true)]
    async fn a_local_permit_is_renewed_given_back_and_ends_by_itself() {
        let permits = Permits::default();
        permits.hold(&permit("a"));
        permits.hold(&permit("b"));
        assert_eq!((permits.count("u", "x"), permits.count("u", "a")), (2, 1));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(permits.renew(&permit("a")) && !permits.renew(&permit("x")), "only what is held is renewed");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(permits.count("u", "x"), 1, "b was not renewed: its lease ended");
        permits.give_back(&permit("a"));
        assert_eq!(permits.count("u", "x"), 0, "it does not count while redis is being told");
        assert!(!permits.renew(&permit("a")), "a permit that was given back cannot come to life again");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_return_waits_exactly_so_long() {
        let permits = std::sync::Arc::new(Permits::default());
        permits.hold(&permit("a"));
        permits.all_returned("u").await;
        permits.give_back(&permit("a"));
        let mut waiting = std::pin::pin!(permits.all_returned("u"));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        permits.forget(&permit("a"));
        waiting.await;
        assert!(permits.lock().is_empty());
    }
}
