//! Real worker processes, killed and paused in the middle of things.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use chrono::Timelike as _;
use jobs::{EnqueueOptions, JobId, JobState, Settings};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use runtime::Clock;
use serde_json::json;

use crate::common::{Bench, MS, eventually, in_full};

/// Leases of those that are killed or paused, and of those that must keep theirs on a busy machine.
const SHORT_MS: u64 = 5_000;
const LONG_MS: u64 = 30_000;

/// A running `test_worker` (crates/jobs/src/bin); killed when it goes out of scope.
struct Process(Child);

impl Process {
    fn start(bench: &Bench, lease_ms: u64, cron: &[&str]) -> Self {
        Self::with(bench, lease_ms, cron, &[])
    }

    fn with(bench: &Bench, lease_ms: u64, cron: &[&str], vars: &[(String, String)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_test_worker"));
        command.args([bench.database.url(), &lease_ms.to_string(), "test"]).args(cron);
        command.envs(vars.iter().cloned()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }

    fn kill_9(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_9();
    }
}

async fn bench() -> Bench {
    let bench = Bench::new().await;
    bench
        .execute(
            "create table began (at timestamptz default clock_timestamp(), job bigint, attempt smallint, pid int,
                                 clock timestamptz);
             create table effect (job bigint);
             create table refused (job bigint)",
        )
        .await;
    bench
}

async fn enqueue(bench: &Bench, deed: serde_json::Value, options: EnqueueOptions) -> JobId {
    jobs::enqueue_raw(&mut bench.conn().await, "deed", deed, options).await.unwrap().id()
}

async fn deed(bench: &Bench, what: &str, ms: u64) -> JobId {
    let options = EnqueueOptions {
        max_attempts: Some(1_000),
        timeout: Some(Duration::from_secs(120)),
        ..EnqueueOptions::default()
    };
    enqueue(bench, json!({ "what": what, "ms": ms }), options).await
}

async fn of_job(bench: &Bench, table: &str, id: JobId) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("select count(*) from {table} where job = $1"));
    sqlx::query_scalar(sql).bind(id).fetch_one(&bench.pool).await.unwrap()
}

async fn until(bench: &Bench, table: &str, id: JobId, rows: i64) {
    eventually(table, async || of_job(bench, table, id).await >= rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_in_the_middle_of_a_job_has_it_run_again_when_its_lease_is_over() {
    // In full with the lease that there is when nobody says otherwise.
    let lease_ms = if in_full() { Settings::default().lease.as_millis() as u64 } else { SHORT_MS };
    let bench = bench().await;
    let mut first = Process::start(&bench, lease_ms, &[]);
    let id = deed(&bench, "work", 1_000).await;
    until(&bench, "began", id, 1).await;
    first.kill_9();
    let killed = Instant::now();
    let _second = Process::start(&bench, LONG_MS, &[]);
    until(&bench, "began", id, 2).await;
    // It was renewed a third of it before the kill, and when it is lost its jobs are at two thirds: at least so much is left.
    let again = killed.elapsed();
    assert!(again > MS(lease_ms / 3), "not while the lease held: {again:?}");
    println!("killed, and run again after {again:?} with a lease of {lease_ms} ms");
    assert!(!in_full() || again <= MS(40_000), "{again:?}");
    let job = bench.until(id, JobState::Completed).await;
    assert_eq!((job.attempt, job.errors.len()), (2, 1), "the attempt that died is counted: {job:?}");
    assert_eq!(job.errors[0].error, "the worker was lost");
    assert_eq!(of_job(&bench, "effect", id).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_between_effect_and_acknowledgement_leaves_one_effect() {
    let bench = bench().await;
    // With a key, in the transaction that completes the job, and in one that was not committed.
    for (what, attempts) in [("effect_then_hang", 2), ("complete_then_hang", 1), ("hang_before_commit", 2)] {
        let mut first = Process::start(&bench, SHORT_MS, &[]);
        let id = deed(&bench, what, 0).await;
        until(&bench, "began", id, 1).await;
        match what {
            "hang_before_commit" => {
                let holds = "select count(*) from pg_stat_activity
                             where datname = current_database() and state = 'idle in transaction'";
                eventually("the transaction is open", async || bench.number(holds).await > 0).await;
            }
            _ => until(&bench, "effect", id, 1).await,
        }
        first.kill_9();
        let second = Process::start(&bench, LONG_MS, &[]);
        let job = bench.until(id, JobState::Completed).await;
        assert_eq!((job.attempt, of_job(&bench, "effect", id).await), (attempts, 1), "{what}: {job:?}");
        assert_eq!(of_job(&bench, "began", id).await, i64::from(attempts), "{what}");
        drop(second);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_paused_past_its_lease_writes_nothing_when_it_goes_on() {
    let bench = bench().await;
    let paused = Process::start(&bench, SHORT_MS, &[]);
    // Nothing can stop the first, so it comes back as a zombie; the second is stopped by the lost lease.
    let ids = [deed(&bench, "work_deaf", 1_500).await, deed(&bench, "work", 1_500).await];
    for id in ids {
        until(&bench, "began", id, 1).await;
    }
    paused.signal(Signal::SIGSTOP);
    let healthy = Process::start(&bench, LONG_MS, &[]);
    for id in ids {
        until(&bench, "began", id, 2).await;
    }
    // While the other one is at it.
    paused.signal(Signal::SIGCONT);
    until(&bench, "refused", ids[0], 1).await;
    for id in ids {
        let job = bench.until(id, JobState::Completed).await;
        assert_eq!((job.attempt, of_job(&bench, "effect", id).await), (2, 1), "{job:?}");
        assert_eq!(job.errors[0].error, "the worker was lost");
    }
    drop(healthy);
    // It has a new lease and works on.
    let id = deed(&bench, "work", 0).await;
    bench.until(id, JobState::Completed).await;
    assert_eq!(of_job(&bench, "effect", id).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_aborts_its_process_ends_after_its_attempts_and_the_others_are_done() {
    let bench = bench().await;
    let options = EnqueueOptions { max_attempts: Some(3), ..EnqueueOptions::default() };
    let poison = enqueue(&bench, json!({ "what": "abort" }), options).await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(deed(&bench, "work", 50).await);
    }
    // As a platform does it: a process that dies is started again.
    let (mut process, mut deaths) = (Process::start(&bench, SHORT_MS, &[]), 0);
    eventually("the poison is discarded", async || {
        if process.has_ended() {
            deaths += 1;
            process = Process::start(&bench, SHORT_MS, &[]);
        }
        bench.find(poison).await.state == JobState::Discarded
    })
    .await;
    let job = bench.find(poison).await;
    assert_eq!((job.attempt, job.errors.len(), deaths), (3, 3, 3), "{job:?}");
    for id in others {
        bench.until(id, JobState::Completed).await;
        assert_eq!(of_job(&bench, "effect", id).await, 1);
    }
}

/// A library that shows a process another time of day, made with the C compiler that the project's build needs anyway.
/// What follows a time that only goes forward, such as timers, is left alone, as with a clock that is set wrong.
#[cfg(target_os = "linux")]
fn wrong_clock(seconds: i64) -> Vec<(String, String)> {
    const SOURCE: &str = r#"
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t clock, struct timespec *t) {
            int failed = syscall(SYS_clock_gettime, clock, t);
            const char *offset = getenv("CLOCK_OFFSET_SECONDS");
            if (!failed && clock == CLOCK_REALTIME && offset) t->tv_sec += atol(offset);
            return failed;
        }"#;
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, library) = (dir.join("wrong_clock.c"), dir.join("wrong_clock.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(made.unwrap().success(), "the C compiler makes the library");
    let library = library.to_str().unwrap().to_owned();
    vec![("LD_PRELOAD".to_owned(), library), ("CLOCK_OFFSET_SECONDS".to_owned(), seconds.to_string())]
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_clocks_are_ten_minutes_off_do_everything_at_the_databases_time() {
    let bench = bench().await;
    let each_second = ["* * * * * *"];
    let _workers = [-600, 600, 0].map(|s| Process::with(&bench, LONG_MS, &each_second, &wrong_clock(s)));
    let clocks = "select count(distinct round(extract(epoch from clock - at) / 600)) from began";
    eventually("ticks ran under all three clocks", async || bench.number(clocks).await == 3).await;
    let mut ids = Vec::new();
    for seconds in [1, 2, 3] {
        let options =
            EnqueueOptions { delay: Some(Duration::from_secs(seconds)), ..EnqueueOptions::default() };
        ids.push(enqueue(&bench, json!({ "what": "work" }), options).await);
    }
    for id in ids {
        let job = bench.until(id, JobState::Completed).await;
        let late = job.started_at.unwrap() - job.run_at;
        assert!((0..5_000).contains(&late.num_milliseconds()), "{late}: {job:?}");
    }
    let (ticks, span) = ticks(&bench).await;
    assert_eq!(ticks, span, "one job for each tick");
    let off = "select count(*) from cron_tick where abs(extract(epoch from decided_at - tick)) > 60";
    assert_eq!(bench.number(off).await, 0, "no tick is decided at another clock's time");
    assert_eq!(bench.number("select count(*) from job_done where attempt > 1").await, 0, "no lease was lost");
}

/// How many ticks have a job, and how many seconds there are from the first to the last one.
async fn ticks(bench: &Bench) -> (i64, i64) {
    let sql = "with fired as (select (args->>'tick')::timestamptz as tick from job where args ? 'tick'
                              union all
                              select (args->>'tick')::timestamptz from job_done where args ? 'tick')
               select count(*), extract(epoch from max(tick) - min(tick))::bigint + 1 from fired where tick is not null";
    sqlx::query_as(sql).fetch_one(&bench.pool).await.unwrap()
}

/// Two to five workers for a minute, of which one is killed, paused or joined by another about every second.
#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_random_kills_and_pauses_gives_one_job_for_each_tick_and_one_effect_for_each_job() {
    const MINUTE: Duration = Duration::from_secs(60);
    let bench = bench().await;
    let each_second = ["* * * * * *"];
    let start = || (Process::start(&bench, 3_000, &each_second), None::<Instant>);
    let mut workers = vec![start(), start(), start()];
    eventually("it ticks", async || bench.number("select count(*) from cron_tick").await > 0).await;
    let (begun, mut kills, mut pauses, mut ids) = (Instant::now(), 0, 0, Vec::new());
    while begun.elapsed() < MINUTE {
        let which = rand::random_range(0..workers.len());
        let running = workers.iter().filter(|(_, until)| until.is_none()).count();
        match rand::random_range(0..4) {
            0 if workers.len() > 2 => {
                // Also while it is paused, and also the last one that runs.
                workers.swap_remove(which).0.kill_9();
                kills += 1;
            }
            1 if workers[which].1.is_none() && running > 1 => {
                workers[which].0.signal(Signal::SIGSTOP);
                workers[which].1 = Some(Instant::now() + MS(rand::random_range(500..8_000)));
                pauses += 1;
            }
            _ if workers.len() < 5 => workers.push(start()),
            _ => {}
        }
        for _ in 0..5 {
            let what = ["work", "work_deaf"][ids.len() % 2];
            ids.push(deed(&bench, what, rand::random_range(0..700)).await);
            tokio::time::sleep(MS(rand::random_range(50..250))).await;
        }
        for (process, until) in &mut workers {
            if until.is_some_and(|until| until <= Instant::now()) {
                process.signal(Signal::SIGCONT);
                *until = None;
            }
        }
    }
    for (process, _) in &workers {
        process.signal(Signal::SIGCONT);
    }
    let ended = bench.number("select extract(epoch from now())::bigint").await;
    eventually("the ticks of that time are decided", async || {
        bench.number("select extract(epoch from max(tick))::bigint from cron_tick").await >= ended
    })
    .await;
    drop(workers);
    // What the dead left behind, done in peace and without further ticks.
    let _last = Process::start(&bench, LONG_MS, &[]);
    eventually("everything is done", async || bench.number("select count(*) from job").await == 0).await;
    let (fired, seconds) = ticks(&bench).await;
    assert_eq!(fired, seconds, "one job for each tick, none missing ({kills} kills, {pauses} pauses)");
    assert!(seconds >= 60, "{seconds} s");
    let decided = bench.number("select count(*) from cron_tick where job_id is not null").await;
    assert_eq!(decided, fired);
    let done = bench.number("select count(*) from job_done where state = 'completed'").await;
    assert_eq!(done, fired + ids.len() as i64, "enqueued and done");
    assert_eq!(bench.number("select count(*) from effect").await, done);
    assert_eq!(bench.number("select count(distinct job) from effect").await, done, "one effect for each job");
    assert!(kills > 3 && pauses > 3, "{kills} kills, {pauses} pauses");
    let again = bench.number("select count(*) from job_done where attempt > 1").await;
    assert!(again > 0, "no job was hit by a kill or a pause");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_schedule_panics_ends_with_a_failure_and_hands_back_what_it_held() {
    let bench = bench().await;
    let held = deed(&bench, "work", 120_000).await;
    // In twenty seconds, for it to hold the job by then; should it take longer to start, it is the next minute.
    let second = (Clock::system().now().second() + 20) % 60;
    let mut process = Process::start(&bench, LONG_MS, &[&format!("panic {second} * * * * *")]);
    until(&bench, "began", held, 1).await;
    let mut status = None;
    eventually("it has ended", async || {
        status = process.0.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert_eq!(status.unwrap().code(), Some(1));
    // At once, and not when the lease is over.
    let job = jobs::find(&mut bench.conn().await, held).await.unwrap().unwrap();
    assert_eq!((job.state, job.attempt), (JobState::Ready, 0), "{job:?}");
}
