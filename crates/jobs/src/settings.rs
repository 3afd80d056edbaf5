//! How a worker works.

use std::time::Duration;

/// Settings of a [`crate::Worker`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// The replica's name, for operators.
    pub name: String,
    /// The binary's version, for operators.
    pub version: String,
    /// Jobs at a time, over all queues that have no number of their own. Each queue keeps one of these slots for itself.
    /// The handlers' pool should have as many connections, if all jobs use the database.
    pub concurrency: usize,
    /// At most so many more are claimed and kept at hand while jobs are short; they are handed back when no slot gets free.
    pub prefetch: usize,
    /// Fallback for lost notifications; spread by a quarter either way.
    pub poll_interval: Duration,
    /// A worker that was silent for so long is dead, and its jobs are run by others.
    pub lease: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "worker".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            concurrency: 10,
            prefetch: 1_000,
            poll_interval: Duration::from_secs(1),
            lease: Duration::from_secs(30),
        }
    }
}

/// About this long, a quarter more or less: workers that were started together do not ask together.
pub(crate) fn spread(time: Duration) -> Duration {
    time.mul_f64(0.75 + 0.5 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_are_spread_over_a_quarter_either_way() {
        let (lo, hi) = (0..2_000)
            .map(|_| spread(Duration::from_secs(1)))
            .fold((Duration::MAX, Duration::ZERO), |(lo, hi), time| (lo.min(time), hi.max(time)));
        let ms = Duration::from_millis;
        assert!((ms(750)..ms(770)).contains(&lo), "{lo:?}");
        assert!((ms(1_230)..=ms(1_250)).contains(&hi), "{hi:?}");
    }
}
