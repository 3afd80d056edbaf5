//! How often a request may be sent again.

use std::sync::atomic::{AtomicU32, Ordering};

/// Retries must not multiply the load on an engine that fails under it: at most one request in ten is sent again, and a
/// handful after a quiet time.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// In tenths.
    left: AtomicU32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { left: AtomicU32::new(Self::MOST) }
    }
}

impl RetryBudget {
    const RETRY: u32 = 10;
    const MOST: u32 = 10 * Self::RETRY;

    /// A request is made for the first time.
    pub(crate) fn request(&self) {
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left < Self::MOST).then(|| left + 1));
    }

    /// Whether one may be made again.
    pub(crate) fn retry(&self) -> bool {
        let take = |left: u32| left.checked_sub(Self::RETRY);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::default();
        let burst = (0..100).filter(|_| budget.retry()).count();
        assert_eq!(burst, 10, "after a quiet time");
        let retried = (0..1_000)
            .filter(|_| {
                budget.request();
                budget.retry()
            })
            .count();
        assert_eq!(retried, 100);
    }
}
