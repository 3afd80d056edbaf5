//! Where the looks of a queue begin.
//!
//! Somewhere a transaction is open for long: a backup, a forgotten session. As long as it is, vacuum removes nothing, and the
//! index keeps an entry for every job that has gone meanwhile. A look that begins at the front walks over all of them. So when
//! looks get slow they begin where the last one ended, and only now and then at the front, for what was committed late.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::claim::Place;

const LEVELS: usize = 4;
/// A transaction that enqueued and was committed within this time is found at once, whatever the floor.
const MARGIN: TimeDelta = TimeDelta::seconds(5);
/// Looks from the front take at most one part in so many of the time,
const SHARE: u32 = 20;
/// unless it is so long ago: what was committed late waits for it.
const LATE: Duration = Duration::from_secs(20);
/// A look that takes longer than this, and than so long for each job that it found, walks over remains.
const SLOW: Duration = Duration::from_millis(25);
const SLOW_JOB: Duration = Duration::from_micros(100);

/// For each priority the first job to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) run_at: [DateTime<Utc>; LEVELS],
    pub(crate) id: [i64; LEVELS],
}

impl Levels {
    /// From the front.
    pub(crate) const FRONT: Self = Self { run_at: [DateTime::UNIX_EPOCH; LEVELS], id: [0; LEVELS] };
}

#[derive(Debug)]
pub(crate) struct Floor {
    /// None while looks from the front are quick.
    front_at: Option<Instant>,
    levels: Levels,
    /// Looks from the front are at least so far apart.
    every: Duration,
}

/// What came of a look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looked {
    pub(crate) from_front: bool,
    pub(crate) took: Duration,
    pub(crate) found: usize,
    /// The last of them in the order of the queue.
    pub(crate) last: Option<Place>,
    /// The database's time when nothing was left behind; none when there may be more.
    pub(crate) all_at: Option<DateTime<Utc>>,
}

impl Floor {
    pub(crate) fn new(every: Duration) -> Self {
        Self { front_at: None, levels: Levels::FRONT, every }
    }

    /// Where to begin, and whether that is the front.
    pub(crate) fn begin(&self) -> (Levels, bool) {
        match self.front_at {
            Some(at) if Instant::now() < at => (self.levels.clone(), false),
            _ => (Levels::FRONT, true),
        }
    }

    pub(crate) fn looked(&mut self, look: Looked) {
        if look.from_front {
            self.levels = Levels::FRONT;
            let slow = look.took > SLOW + SLOW_JOB * look.found as u32;
            self.front_at = slow.then(|| Instant::now() + self.every.max((look.took * SHARE).min(LATE)));
        }
        match (look.all_at, look.last) {
            (Some(now), _) => self.levels = Levels { run_at: [now - MARGIN; LEVELS], id: [0; LEVELS] },
            // Everything more urgent is gone, and of this level what comes before.
            (None, Some(last)) => {
                let late = last.claimed_at - MARGIN;
                let level = usize::from(last.priority.unsigned_abs()).min(LEVELS - 1);
                self.levels.run_at[..level].fill(late);
                self.levels.id[..level].fill(0);
                let at = if last.run_at < late { (last.run_at, last.id) } else { (late, 0) };
                (self.levels.run_at[level], self.levels.id[level]) = at;
            }
            (None, None) => {}
        }
    }

    /// Something may have been left behind, such as the jobs of a paused queue.
    pub(crate) fn reset(&mut self) {
        self.front_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn slow(last: Option<(i16, i64, i64)>, all_at: Option<DateTime<Utc>>) -> Looked {
        let place = |(priority, run_at, id)| Place { priority, run_at: at(run_at), id, claimed_at: at(100) };
        Looked { from_front: true, took: Duration::from_secs(1), found: 1, last: last.map(place), all_at }
    }

    #[tokio::test(start_paused = true)]
    async fn only_slow_looks_begin_where_the_last_one_ended_and_now_and_then_at_the_front() {
        let mut floor = Floor::new(Duration::from_secs(10));
        floor.looked(Looked { took: Duration::from_millis(5), ..slow(None, Some(at(100))) });
        assert_eq!(floor.begin(), (Levels::FRONT, true));
        floor.looked(slow(None, Some(at(100))));
        assert_eq!(floor.begin(), (Levels { run_at: [at(95); 4], id: [0; 4] }, false));
        tokio::time::advance(Duration::from_secs(19)).await;
        assert!(!floor.begin().1, "a twentieth of the time");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(floor.begin().1);
        floor.looked(slow(None, Some(at(200))));
        floor.reset();
        assert!(floor.begin().1);
        floor.looked(Looked { took: Duration::from_secs(60), ..slow(None, Some(at(300))) });
        tokio::time::advance(Duration::from_secs(21)).await;
        assert!(floor.begin().1, "what was committed late does not wait for twenty minutes");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_full_claim_left_behind_is_not_passed_over() {
        let mut floor = Floor::new(Duration::from_secs(10));
        floor.looked(slow(Some((2, 50, 4)), None));
        let (levels, _) = floor.begin();
        let front = DateTime::UNIX_EPOCH;
        assert_eq!(levels.run_at, [at(95), at(95), at(50), front]);
        assert_eq!(levels.id, [0, 0, 4, 0]);
        // The next look begins there; what it leaves is again not passed over.
        floor.looked(Looked { from_front: false, ..slow(Some((2, 98, 9)), None) });
        assert_eq!(floor.begin().0.run_at, [at(95), at(95), at(95), front], "late commits are found");
    }
}
