//! A circuit breaker: after enough failures in a row calls are refused at once, until a probe succeeds.
//!
//! The pattern is from M. Nygard, *Release It!* (2007). There is no timer task: time is looked at when a call asks.

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::backoff::Backoff;

/// Guards calls to one dependency.
#[derive(Debug)]
pub struct Breaker {
    name: Cow<'static, str>,
    threshold: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    failures: u32,
    /// Set while open: when the next probe may go.
    open_until: Option<Instant>,
    /// When the probe that is out counts as lost.
    probe_until: Option<Instant>,
    backoff: Backoff,
}

/// How long a probe may take before another one is let through.
const PROBE: Duration = Duration::from_secs(5);

impl Breaker {
    /// Opens after `threshold` failures in a row; probes after 100 ms at first and 4 s at most: what is well again is used
    /// within five.
    pub fn new(name: impl Into<Cow<'static, str>>, threshold: u32) -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(4));
        let state = State { failures: 0, open_until: None, probe_until: None, backoff };
        Self { name: name.into(), threshold, state: Mutex::new(state) }
    }

    /// Whether a call may go now. When it may, its outcome must be told by [`Self::success`] or [`Self::failure`].
    pub fn allows(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        match state.open_until {
            None => true,
            Some(until) if now < until => false,
            // Half open: one probe at a time.
            Some(_) if state.probe_until.is_some_and(|p| now < p) => false,
            Some(_) => {
                state.probe_until = Some(now + PROBE);
                true
            }
        }
    }

    /// True while calls are refused or probed.
    pub fn is_open(&self) -> bool {
        self.lock().open_until.is_some()
    }

    /// A call went well.
    pub fn success(&self) {
        let mut state = self.lock();
        if state.open_until.take().is_some() {
            tracing::info!(breaker = &*self.name, "breaker closed");
            metrics::gauge!("breaker_open", "name" => self.name.to_string()).set(0.0);
        }
        state.failures = 0;
        state.probe_until = None;
        state.backoff.reset();
    }

    /// A call failed.
    pub fn failure(&self) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        let was_open = state.open_until.is_some();
        // Calls that were under way when it opened must not push the probe further and further away.
        if (was_open && state.probe_until.is_none()) || state.failures < self.threshold {
            return;
        }
        let delay = state.backoff.next_delay();
        state.open_until = Some(Instant::now() + delay);
        state.probe_until = None;
        if !was_open {
            tracing::warn!(breaker = &*self.name, failures = state.failures, "breaker opened");
            metrics::gauge!("breaker_open", "name" => self.name.to_string()).set(1.0);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_the_threshold_and_closes_after_one_good_probe() {
        let breaker = Breaker::new("test", 3);
        for _ in 0..2 {
            assert!(breaker.allows());
            breaker.failure();
        }
        assert!(breaker.allows(), "two failures are not three");
        breaker.failure();
        assert!(!breaker.allows());
        tokio::time::advance(Duration::from_millis(300)).await;
        assert!(breaker.allows(), "a probe may go");
        assert!(!breaker.allows(), "one at a time");
        breaker.success();
        assert!(breaker.allows() && breaker.allows() && !breaker.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_keeps_it_open_and_a_lost_one_does_not_block_for_ever() {
        let breaker = Breaker::new("test", 1);
        breaker.failure();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(breaker.allows());
        breaker.failure();
        assert!(!breaker.allows());
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(breaker.allows(), "the caller of this probe goes away and never reports");
        assert!(!breaker.allows());
        tokio::time::advance(PROBE).await;
        assert!(breaker.allows());
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_forgets_earlier_failures() {
        let breaker = Breaker::new("test", 2);
        for _ in 0..10 {
            breaker.failure();
            breaker.success();
        }
        assert!(breaker.allows());
    }
}
