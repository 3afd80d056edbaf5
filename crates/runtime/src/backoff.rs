//! Exponential backoff with full jitter, as described in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Delays that double from `base` to `cap`; each is drawn from between half of its value and the whole.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Starts at `base`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.base.saturating_mul(1 << self.attempt.min(20)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        // Half is kept so that a retry loop never spins; replicas that start together still spread out.
        full / 2 + full.mul_f64(jitter()) / 2
    }

    /// Back to the beginning, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// A number from 0 to 1 that need not be unpredictable, only different between processes.
#[expect(clippy::disallowed_methods, reason = "the wall clock's nanoseconds are only used as noise")]
pub fn jitter() -> f64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    let mixed = (nanos ^ std::process::id().rotate_left(16)).wrapping_mul(0x9E37_79B1);
    f64::from(mixed) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_start_over_after_a_reset() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(base, cap);
        let delays: Vec<Duration> = (0..10).map(|_| backoff.next_delay()).collect();
        for (i, d) in delays.iter().enumerate() {
            let full = (base * (1 << i)).min(cap);
            assert!(*d >= full / 2 && *d <= full, "{i}: {d:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= base);
    }
}
