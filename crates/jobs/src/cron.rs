//! Cron: exactly one job for each tick, however many workers are alive.
//!
//! No worker is the leader. Each computes which ticks are due from its table of lines, the database's clock and the last
//! decided tick, and inserts the tick and its job in one statement; the primary key of `cron_tick` lets one of them win.
//! Every worker inserts the ticks it sees in order, so a later tick is never there without the earlier ones.

use std::{fmt, str::FromStr as _, sync::Arc, time::Duration};

use chrono::{DateTime, Offset as _, SubsecRound as _, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use croner::{Cron, JobType};
use sqlx::PgConnection;

use crate::{Error, JobSpec, NewJob};

/// A tick that nobody decided for so long counts as missed.
const ON_TIME: TimeDelta = TimeDelta::seconds(60);
/// So many missed ticks are made up for before the other lines have their turn.
const ROUND: usize = 100;

/// What happens with the ticks that no worker was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// Nothing: the next tick counts. A tick that is less than a minute late still runs.
    Skip,
    /// One job for the latest of them.
    One,
    /// A job for each of them, in order.
    All,
}

impl CatchUp {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::One => "one",
            Self::All => "all",
        }
    }
}

type MakeJob = dyn Fn(DateTime<Utc>) -> Result<NewJob, Error> + Send + Sync;

/// A line of the schedule.
#[derive(Clone)]
pub struct CronLine {
    name: &'static str,
    expression: String,
    cron: Cron,
    timezone: Tz,
    catch_up: CatchUp,
    kind: &'static str,
    make: Arc<MakeJob>,
}

impl fmt::Debug for CronLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({}) -> {}", self.name, self.expression, self.timezone, self.kind)
    }
}

impl CronLine {
    /// A line that enqueues what `job` makes of the tick's time. The expression has five fields, or six with the seconds
    /// first. The tick makes the job unique; the kind's own [`JobSpec::unique`] is not asked.
    ///
    /// When clocks go forward a fixed time that does not exist runs right after the gap; when they go back it runs
    /// once. Intervals (`*`, `*/5`) run whenever the local time matches.
    pub fn new<J: JobSpec>(
        name: &'static str,
        expression: &str,
        timezone: Tz,
        catch_up: CatchUp,
        job: impl Fn(DateTime<Utc>) -> J + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let invalid = |reason: String| Error::InvalidCronLine { name: name.to_owned(), reason };
        let cron = Cron::from_str(expression).map_err(|e| invalid(e.to_string()))?;
        Ok(Self {
            name,
            expression: expression.to_owned(),
            cron,
            timezone,
            catch_up,
            kind: J::NAME,
            make: Arc::new(move |tick| NewJob::of(&job(tick))),
        })
    }

    /// Its name: what ticks are stored under.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The kind of job it enqueues.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The cron expression.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// Where the expression's times are meant.
    pub fn timezone(&self) -> Tz {
        self.timezone
    }

    /// The first tick after this time; `None` when there is none (such as 30 February).
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        next_tick(&self.cron, self.timezone, after)
    }

    /// The latest tick in `(after, until]`.
    fn latest(&self, after: DateTime<Utc>, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // A short look back first: after a month without workers a line for each second has 2.6 million ticks.
        [TimeDelta::minutes(1), TimeDelta::hours(1), TimeDelta::days(1), TimeDelta::MAX].into_iter().find_map(
            |window| {
                let from = until.checked_sub_signed(window).map_or(after, |from| from.max(after));
                self.ticks(from, until).last()
            },
        )
    }

    fn ticks(&self, after: DateTime<Utc>, until: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> {
        std::iter::successors(self.next_after(after), |t| self.next_after(*t))
            .take_while(move |t| *t <= until)
    }

    /// The ticks to decide now, in order, and whether they get a job.
    fn due(&self, last: DateTime<Utc>, now: DateTime<Utc>) -> Vec<(DateTime<Utc>, bool)> {
        match self.catch_up {
            CatchUp::All => self.ticks(last, now).take(ROUND).map(|t| (t, true)).collect(),
            CatchUp::One => self.latest(last, now).map(|t| (t, true)).into_iter().collect(),
            CatchUp::Skip => self.latest(last, now).map(|t| (t, now - t <= ON_TIME)).into_iter().collect(),
        }
    }
}

/// For the overview, which has the line as text.
pub(crate) fn next_after(expression: &str, timezone: &str, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    next_tick(&Cron::from_str(expression).ok()?, Tz::from_str(timezone).ok()?, after)
}

fn next_tick(cron: &Cron, timezone: Tz, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    // Ticks are whole seconds; croner would carry the fraction along.
    let after = after.trunc_subsecs(0);
    if cron.determine_job_type() == JobType::FixedTime {
        let local = after.with_timezone(&timezone);
        let mut next = local;
        // In the repeated hour croner answers with the first of the two times, which may be past.
        while next <= local {
            next = cron.find_next_occurrence(&next, false).ok()?;
        }
        return Some(next.with_timezone(&Utc));
    }
    // croner loses the repeated hour when it is asked anew after each tick. So ask it within one UTC offset at a time.
    let (mut from, mut inclusive) = (after, false);
    loop {
        let offset = timezone.offset_from_utc_datetime(&from.naive_utc()).fix();
        let next =
            cron.find_next_occurrence(&from.with_timezone(&offset), inclusive).ok()?.with_timezone(&Utc);
        match offset_change(timezone, from, next) {
            None => return Some(next),
            Some(change) => (from, inclusive) = (change, true),
        }
    }
}

/// The first second in `(from, until]` at which the zone's offset is not that of `from`.
fn offset_change(timezone: Tz, from: DateTime<Utc>, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let offset = |t: DateTime<Utc>| timezone.offset_from_utc_datetime(&t.naive_utc()).fix();
    let before = offset(from);
    let mut same = from;
    while same < until {
        let mut other = (same + TimeDelta::days(1)).min(until);
        if offset(other) == before {
            same = other;
            continue;
        }
        while other - same > TimeDelta::seconds(1) {
            let middle = same + TimeDelta::seconds((other - same).num_seconds() / 2);
            if offset(middle) == before { same = middle } else { other = middle }
        }
        return Some(other);
    }
    None
}

/// Makes the lines known to the overview, and gives a new line the time from which its ticks count.
pub(crate) async fn register(conn: &mut PgConnection, lines: &[CronLine]) -> Result<(), Error> {
    for line in lines {
        sqlx::query!(
            "insert into cron_line (name, schedule, timezone, catch_up, kind) values ($1, $2, $3, $4, $5)
             on conflict (name) do update set schedule = excluded.schedule, timezone = excluded.timezone,
                 catch_up = excluded.catch_up, kind = excluded.kind, seen_at = now()",
            line.name,
            line.expression,
            line.timezone.name(),
            line.catch_up.as_str(),
            line.kind,
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// Decides every tick that is due. Returns how long to wait for the next one.
pub(crate) async fn evaluate(conn: &mut PgConnection, lines: &[CronLine]) -> Result<Option<Duration>, Error> {
    let names: Vec<String> = lines.iter().map(|l| l.name.to_owned()).collect();
    let rows = sqlx::query!(
        r#"select l.name, now() as "now!",
                  coalesce((select max(tick) from cron_tick t where t.name = l.name), l.registered_at) as "last!"
           from cron_line l where l.name = any($1)"#,
        &names
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut wait: Option<TimeDelta> = None;
    for row in rows {
        let Some(line) = lines.iter().find(|l| l.name == row.name) else { continue };
        let due = line.due(row.last, row.now);
        for (tick, runs) in &due {
            if *runs {
                decide(conn, line, *tick).await?;
            } else {
                skip(conn, line, *tick).await?;
            }
        }
        let last = due.last().map_or(row.last, |(tick, _)| *tick);
        if let Some(next) = line.next_after(last) {
            let until_next = (next - row.now).max(TimeDelta::zero());
            wait = Some(wait.map_or(until_next, |w| w.min(until_next)));
        }
    }
    Ok(wait.and_then(|w| w.to_std().ok()))
}

/// The tick and its job in one statement: both exist or neither.
async fn decide(conn: &mut PgConnection, line: &CronLine, tick: DateTime<Utc>) -> Result<(), Error> {
    let job = (line.make)(tick)?;
    let new = sqlx::query!(
        r#"with decided as (
               insert into cron_tick (name, tick, job_id) values ($1, $2, nextval(pg_get_serial_sequence('job', 'id')))
               on conflict do nothing
               returning job_id
           ), new as (
               insert into job (id, queue, kind, priority, args, max_attempts, timeout_ms)
               select job_id, $3, $4, $5, $6, $7, $8 from decided
               returning id
           )
           select id as "id!", pg_notify('jobs', $3) is null as notified from new"#,
        line.name,
        tick,
        job.queue,
        job.kind,
        job.priority as i16,
        job.args,
        job.max_attempts,
        crate::enqueue::millis(job.timeout),
    )
    .fetch_optional(conn)
    .await?;
    if let Some(new) = new {
        metrics::counter!("cron_ticks_total", "line" => line.name, "decision" => "run").increment(1);
        crate::enqueue::count(&job.kind);
        tracing::info!(line = line.name, %tick, job = new.id, "cron tick");
    }
    Ok(())
}

async fn skip(conn: &mut PgConnection, line: &CronLine, tick: DateTime<Utc>) -> Result<(), Error> {
    let skipped = sqlx::query!(
        "insert into cron_tick (name, tick) values ($1, $2) on conflict do nothing",
        line.name,
        tick
    )
    .execute(conn)
    .await?;
    if skipped.rows_affected() == 1 {
        metrics::counter!("cron_ticks_total", "line" => line.name, "decision" => "skip").increment(1);
        tracing::warn!(line = line.name, %tick, "cron ticks were missed and are skipped");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn ticks(expression: &str, zone: Tz, after: &str, until: &str) -> Vec<String> {
        let cron = Cron::from_str(expression).unwrap();
        std::iter::successors(next_tick(&cron, zone, at(after)), |t| next_tick(&cron, zone, *t))
            .take_while(|t| *t <= at(until))
            .map(|t| t.format("%d %H:%M").to_string())
            .collect()
    }

    #[test]
    fn a_fixed_time_runs_once_on_days_with_a_clock_change() {
        let berlin = chrono_tz::Europe::Berlin;
        // 29 March 2026, 02:30 does not exist; it runs at 03:00 CEST, which is 01:00 UTC.
        let spring = ticks("30 2 * * *", berlin, "2026-03-28T00:00:00Z", "2026-03-30T12:00:00Z");
        assert_eq!(spring, ["28 01:30", "29 01:00", "30 00:30"]);
        // 25 October 2026, 02:30 comes twice; the first is 00:30 UTC.
        let autumn = ticks("30 2 * * *", berlin, "2026-10-24T01:00:00Z", "2026-10-26T12:00:00Z");
        assert_eq!(autumn, ["25 00:30", "26 01:30"]);
    }

    #[test]
    fn an_interval_runs_through_the_repeated_hour_and_skips_the_missing_one() {
        let berlin = chrono_tz::Europe::Berlin;
        let autumn = ticks("*/30 * * * *", berlin, "2026-10-24T23:30:00Z", "2026-10-25T02:00:00Z");
        assert_eq!(autumn, ["25 00:00", "25 00:30", "25 01:00", "25 01:30", "25 02:00"]);
        let spring = ticks("*/30 2,3 * * *", berlin, "2026-03-29T00:00:00Z", "2026-03-29T12:00:00Z");
        assert_eq!(spring, ["29 01:00", "29 01:30"]);
    }

    #[test]
    fn fractions_of_a_second_do_not_shift_a_tick_and_an_impossible_date_has_none() {
        let cron = Cron::from_str("* * * * * *").unwrap();
        assert_eq!(next_tick(&cron, Tz::UTC, at("2026-01-01T00:00:00.9Z")), Some(at("2026-01-01T00:00:01Z")));
        let never = Cron::from_str("0 0 30 2 *").unwrap();
        assert_eq!(next_tick(&never, Tz::UTC, at("2026-01-01T00:00:00Z")), None);
    }

    proptest::proptest! {
        /// Whatever the time and the zone: asking again from a tick gives a later one, and none in between is lost.
        #[test]
        fn ticks_only_go_forward(seconds in 1_700_000_000_i64..1_900_000_000, zone in 0..4_usize) {
            let zone = [Tz::UTC, Tz::Europe__Berlin, Tz::America__New_York, Tz::Australia__Lord_Howe][zone];
            let start = DateTime::from_timestamp(seconds, 0).unwrap();
            for expression in ["*/5 * * * *", "30 2 * * *", "0 * * * *"] {
                let cron = Cron::from_str(expression).unwrap();
                let first = next_tick(&cron, zone, start).unwrap();
                proptest::prop_assert!(first > start);
                let before = first - TimeDelta::seconds(1);
                proptest::prop_assert_eq!(next_tick(&cron, zone, before.max(start)).unwrap(), first);
            }
        }
    }

    #[test]
    fn what_is_due_after_an_outage_follows_the_lines_own_rule() {
        #[derive(serde::Serialize, serde::Deserialize)]
        struct Nothing;
        impl JobSpec for Nothing {
            const NAME: &'static str = "nothing";
        }
        let line = |rule| CronLine::new("l", "*/10 * * * *", Tz::UTC, rule, |_| Nothing).unwrap();
        let (last, now) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:35:00Z"));
        assert_eq!(line(CatchUp::All).due(last, now).len(), 3);
        assert_eq!(line(CatchUp::One).due(last, now), [(at("2026-01-01T00:30:00Z"), true)]);
        assert_eq!(line(CatchUp::Skip).due(last, now), [(at("2026-01-01T00:30:00Z"), false)]);
        let on_time = at("2026-01-01T00:30:20Z");
        assert_eq!(line(CatchUp::Skip).due(last, on_time), [(at("2026-01-01T00:30:00Z"), true)]);
        let long_ago = at("2020-01-01T00:00:00Z");
        assert_eq!(line(CatchUp::One).due(long_ago, now).len(), 1);
        assert_eq!(line(CatchUp::All).due(long_ago, now).len(), ROUND);
    }
}
