//! One bucket in memory, counting as `admit.lua` does in Redis: what the local limits are made of, and the model that the
//! scripts are tested against.

use std::{collections::VecDeque, time::Duration};

use config::Rate;

use crate::Algorithm;

/// Microseconds since some beginning.
pub type Micros = u64;

/// Fractions of a unit are kept; the tolerance is for their rounding only.
const TOLERANCE: f64 = 0.001;

/// What one subject has used of one policy. The caller tells the time; it may step back.
#[derive(Debug, Clone)]
pub enum Bucket {
    /// See [`Algorithm::Gcra`]: so many units at a time; they drain.
    Gcra {
        /// Units in the bucket.
        level: f64,
        /// When that was so.
        since: Micros,
    },
    /// See [`Algorithm::SlidingWindow`]: when each unit was taken, oldest first.
    Window(VecDeque<Micros>),
    /// See [`Algorithm::FixedWindow`].
    Fixed {
        /// Which window.
        window: u64,
        /// Units taken in it.
        used: u64,
    },
}

/// Where a bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Units left.
    pub remaining: u64,
    /// Until it is full again, until the oldest unit leaves the window, or until the window ends.
    pub reset: Duration,
}

impl Bucket {
    /// A full one. Permits are not counted in buckets.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Gcra => Self::Gcra { level: 0.0, since: 0 },
            Algorithm::SlidingWindow | Algorithm::Permits => Self::Window(VecDeque::new()),
            Algorithm::FixedWindow => Self::Fixed { window: 0, used: 0 },
        }
    }

    /// Forgets what has drained or left the window, and pulls back to `now` what lies ahead of it.
    fn advance(&mut self, rate: Rate, now: Micros) {
        let period = micros(rate.period);
        match self {
            Self::Gcra { level, since } => {
                let drained = now.saturating_sub(*since) as f64 * rate.limit as f64 / period as f64;
                (*level, *since) = ((*level - drained).max(0.0), now);
            }
            Self::Window(units) => {
                units.retain_mut(|at| {
                    *at = (*at).min(now);
                    *at + period > now
                });
            }
            Self::Fixed { window, used } => {
                if *window < now / period {
                    *used = 0;
                }
                *window = now / period;
            }
        }
    }

    /// Whether `cost` units could be taken. If not: after which time; `None` when never.
    pub fn check(&mut self, rate: Rate, cost: u64, now: Micros) -> Result<(), Option<Duration>> {
        self.advance(rate, now);
        if cost > rate.limit {
            return Err(None);
        }
        let (limit, period) = (rate.limit as f64, micros(rate.period));
        let wait = match self {
            Self::Gcra { level, .. } => {
                let over = *level + cost as f64 - limit;
                (over > TOLERANCE).then(|| (over * period as f64 / limit).ceil() as u64)
            }
            Self::Window(units) => {
                let over = (units.len() as u64 + cost).saturating_sub(rate.limit);
                (over > 0).then(|| units[over as usize - 1] + period - now)
            }
            Self::Fixed { window, used } => (*used + cost > rate.limit).then(|| (*window + 1) * period - now),
        };
        wait.map_or(Ok(()), |us| Err(Some(Duration::from_micros(us))))
    }

    /// Takes `cost` units, which [`Self::check`] has allowed at the same time.
    pub fn take(&mut self, cost: u64, now: Micros) {
        match self {
            Self::Gcra { level, .. } => *level += cost as f64,
            Self::Window(units) => units.extend((0..cost).map(|_| now)),
            Self::Fixed { used, .. } => *used += cost,
        }
    }

    /// Adds `difference` units, or gives them back. At most one limit more is owed. A window has no fractions to give back.
    pub fn settle(&mut self, rate: Rate, difference: i64, now: Micros) {
        self.advance(rate, now);
        match self {
            Self::Gcra { level, .. } => {
                *level = (*level + difference as f64).clamp(0.0, 2.0 * rate.limit as f64);
            }
            Self::Window(_) => {}
            Self::Fixed { used, .. } => *used = used.saturating_add_signed(difference),
        }
    }

    /// Where it stands.
    pub fn standing(&mut self, rate: Rate, now: Micros) -> Standing {
        self.advance(rate, now);
        let period = micros(rate.period);
        let (remaining, reset) = match self {
            Self::Gcra { level, .. } => {
                let limit = rate.limit as f64;
                let remaining = (limit - *level + TOLERANCE).max(0.0) as u64;
                (remaining, (*level * period as f64 / limit).ceil() as u64)
            }
            Self::Window(units) => {
                let reset = units.front().map_or(0, |at| at + period - now);
                (rate.limit.saturating_sub(units.len() as u64), reset)
            }
            Self::Fixed { window, used } => (rate.limit.saturating_sub(*used), (*window + 1) * period - now),
        };
        Standing { remaining, reset: Duration::from_micros(reset) }
    }

    /// True when nothing is taken: it may be forgotten.
    pub fn is_full(&mut self, rate: Rate, now: Micros) -> bool {
        self.advance(rate, now);
        match self {
            Self::Gcra { level, .. } => *level <= 0.0,
            Self::Window(units) => units.is_empty(),
            Self::Fixed { used, .. } => *used == 0,
        }
    }
}

fn micros(d: Duration) -> u64 {
    (d.as_micros() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALGORITHMS: [Algorithm; 3] = [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow];

    proptest! {
        /// Case R1. Within any one period at most the limit passes in a sliding window, and twice the limit otherwise (a full
        /// burst and what refills meanwhile, or the ends of two windows); who is refused and waits as long as told is admitted.
        #[test]
        fn no_period_holds_more_than_its_algorithm_allows_and_waiting_admits(
            algorithm in prop::sample::select(&ALGORITHMS[..]),
            limit in 1_u64..30,
            steps in prop::collection::vec((0_u64..40_000_000, 1_u64..8), 1..120),
        ) {
            let rate = Rate { limit, period: Duration::from_secs(60) };
            let mut bucket = Bucket::new(algorithm);
            let (mut now, mut taken) = (1_000_000_000, Vec::new());
            for (pause, cost) in steps {
                now += pause;
                match bucket.check(rate, cost, now) {
                    Ok(()) => {
                        bucket.take(cost, now);
                        taken.push((now, cost));
                    }
                    Err(None) => prop_assert!(cost > limit),
                    Err(Some(wait)) => {
                        prop_assert!(wait > Duration::ZERO && wait <= rate.period, "{:?}", wait);
                        let later = now + wait.as_micros() as u64;
                        prop_assert!(bucket.clone().check(rate, cost, later).is_ok(), "after {:?}", wait);
                    }
                }
                let left = bucket.standing(rate, now).remaining;
                prop_assert!(left == 0 || bucket.clone().check(rate, left, now).is_ok(), "{} are left", left);
            }
            let most = if algorithm == Algorithm::SlidingWindow { limit } else { 2 * limit };
            for (from, _) in &taken {
                let within: u64 = taken.iter().filter(|(at, _)| (*from..from + 60_000_000).contains(at)).map(|(_, c)| c).sum();
                prop_assert!(within <= most, "{} of {}", within, most);
            }
        }

        /// Case R4. Whatever the clock does, nobody is locked out for longer than a period of it.
        #[test]
        fn a_clock_that_steps_back_locks_nobody_out_for_longer_than_a_period(
            algorithm in prop::sample::select(&ALGORITHMS[..]),
            limit in 1_u64..30,
            steps in prop::collection::vec((-1_000_000_000_i64..100_000_000, 1_u64..8), 1..60),
        ) {
            let rate = Rate { limit, period: Duration::from_secs(60) };
            let mut bucket = Bucket::new(algorithm);
            let mut now: u64 = 1_000_000_000_000;
            for (step, cost) in steps {
                now = now.saturating_add_signed(step);
                match bucket.check(rate, cost, now) {
                    Ok(()) => bucket.take(cost, now),
                    Err(None) => prop_assert!(cost > limit),
                    Err(Some(wait)) => prop_assert!(wait <= rate.period, "{:?}", wait),
                }
            }
        }
    }
}
