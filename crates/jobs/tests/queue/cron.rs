//! The schedule: one job for each tick, however many schedulers there are and whatever happens to them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use jobs::{CatchUp, CronLine, JobError, JobSpec, testing::fast_forward};
use serde::{Deserialize, Serialize};

use crate::common::{Bench, MS, end, eventually, life};

#[derive(Serialize, Deserialize)]
struct Tick {
    at: DateTime<Utc>,
}

impl JobSpec for Tick {
    const NAME: &'static str = "tick";
}

fn line(name: &'static str, expression: &str, catch_up: CatchUp) -> CronLine {
    CronLine::new(name, expression, Tz::UTC, catch_up, |at| Tick { at }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_schedulers_that_come_and_go_make_one_job_for_each_tick_and_miss_none() {
    let bench = Bench::new().await;
    let each_second = || line("each_second", "* * * * * *", CatchUp::All);
    let start = || {
        let life = life(MS(10_000));
        let handler = async |_: jobs::JobContext, _: Tick| Ok::<_, JobError>(());
        let handle = bench.worker().register::<Tick, _, _, _>(handler).schedule([each_second()]).start(&life);
        (life, handle)
    };
    let mut lives = vec![start(), start(), start()];
    for round in 0..4_u64 {
        tokio::time::sleep(MS(700)).await;
        // One is cut off without a word, a new one takes its place; at one point nobody is there.
        let (gone, _) = lives.remove(0);
        gone.stop_now();
        gone.run_until_stopped().await;
        if round == 2 {
            for (life, _) in lives.drain(..) {
                end(&life).await;
            }
            tokio::time::sleep(MS(1_500)).await;
            lives.push(start());
        }
        lives.push(start());
    }
    eventually("ticked again", async || lives.last().unwrap().1.last_tick_age().is_some()).await;
    for (life, _) in lives {
        end(&life).await;
    }
    let jobs = "(select args from job union all select args from job_done) as j";
    let count = sqlx::AssertSqlSafe(format!(
        "select count(*), count(distinct args), extract(epoch from max((args->>'at')::timestamptz)
                - min((args->>'at')::timestamptz))::bigint from {jobs}"
    ));
    let (n, distinct, span): (i64, i64, i64) = sqlx::query_as(count).fetch_one(&bench.pool).await.unwrap();
    assert_eq!(n, distinct, "a tick has two jobs");
    assert_eq!(n, span + 1, "a tick is missing");
    assert!(n >= 4, "{n} ticks only");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_each_line_catches_up_as_it_says() {
    let bench = Bench::new().await;
    let lines = || {
        [
            line("skip", "0 * * * *", CatchUp::Skip),
            line("one", "0 * * * *", CatchUp::One),
            line("all", "0 * * * *", CatchUp::All),
        ]
    };
    let run = async || {
        let life = life(MS(10_000));
        let handle = bench.worker().schedule(lines()).start(&life);
        eventually("looked", async || handle.last_tick_age().is_some()).await;
        end(&life).await;
    };
    run().await;
    assert_eq!(bench.number("select count(*) from cron_tick").await, 0, "a new line starts from now");
    // Half an hour past a full hour, so that the latest tick is never on time.
    let mut conn = bench.conn().await;
    let past =
        bench.number("select 7200 + (1800 - extract(epoch from now())::bigint % 3600 + 3600) % 3600").await;
    fast_forward(&mut conn, Duration::from_secs(past.unsigned_abs())).await;
    run().await;
    let per_line = "select count(*) from cron_tick where job_id is not null and name = ";
    let jobs = async |name: &str| -> i64 {
        let sql = sqlx::AssertSqlSafe(format!("{per_line}'{name}'"));
        sqlx::query_scalar(sql).fetch_one(&bench.pool).await.unwrap()
    };
    let (skip, one, all) = (jobs("skip").await, jobs("one").await, jobs("all").await);
    assert!((2..=4).contains(&all), "{all}");
    assert_eq!(one, 1);
    let on_time = bench.number("select (extract(epoch from now())::bigint % 3600 <= 61)::int::bigint").await;
    assert_eq!(skip, on_time.min(1), "skipped unless the test ran right after a full hour");
    run().await;
    assert_eq!(jobs("all").await, all, "nothing is made up for twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_shows_the_last_and_the_next_tick() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let berlin =
        CronLine::new("nightly", "30 3 * * *", Tz::Europe__Berlin, CatchUp::One, |at| Tick { at }).unwrap();
    let handle = bench.worker().schedule([berlin]).start(&life);
    eventually("looked", async || handle.last_tick_age().is_some()).await;
    let lines = jobs::cron_lines(&mut bench.conn().await).await.unwrap();
    assert_eq!((lines[0].name.as_str(), lines[0].timezone.as_str()), ("nightly", "Europe/Berlin"));
    let next = lines[0].next_tick.unwrap().with_timezone(&Tz::Europe__Berlin);
    assert_eq!(next.format("%H:%M").to_string(), "03:30");
    assert!(lines[0].last_tick.is_none());
    end(&life).await;
}

#[test]
fn a_line_that_makes_no_sense_is_refused_with_its_name() {
    for bad in ["", "every day", "61 * * * *", "* * * *"] {
        let error = CronLine::new("bad", bad, Tz::UTC, CatchUp::One, |at| Tick { at }).unwrap_err();
        assert!(error.to_string().starts_with("cron line bad: "), "{bad}: {error}");
    }
}
