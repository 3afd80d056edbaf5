//! What takes its time: small here, in full with `cargo xtask abuse`, which shows the figures too.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use jobs::{EnqueueOptions, JobError, Settings};

use crate::{
    common::{Bench, MS, Task, end, eventually, in_full, life, pool, quick, worker_at},
    pressure::forgotten_transaction,
};

/// The 99th percentile of the time from the begin of one job to the begin of the next one, in a worker that claims and
/// acknowledges them one by one, and the entries of the index that were read for each. No statement of it reads the whole table.
async fn one_by_one(bench: &Bench) -> (Duration, i64) {
    const JOBS: usize = 400;
    let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'job_ready'";
    let scanned = "select seq_tup_read from pg_stat_user_tables where relname = 'job'";
    // Statistics arrive within a second, or when a connection ends.
    tokio::time::sleep(MS(1_100)).await;
    let before = bench.number(read).await;
    let scanned_before = bench.number(scanned).await;
    let begins: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let life = life(MS(10_000));
    let workers = pool(bench.database.url()).await;
    let settings = Settings { concurrency: 1, prefetch: 0, ..quick() };
    worker_at(&workers, bench.database.url(), settings)
        .register::<Task, _, _, _>({
            let begins = begins.clone();
            move |_, _| {
                begins.lock().unwrap().push(Instant::now());
                async { Ok::<_, JobError>(()) }
            }
        })
        .start(&life);
    eventually("enough were done", async || begins.lock().unwrap().len() >= JOBS).await;
    end(&life).await;
    workers.close().await;
    tokio::time::sleep(MS(300)).await;
    let begins = begins.lock().unwrap().clone();
    let mut gaps: Vec<Duration> = begins.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    let entries = (bench.number(read).await - before) / begins.len() as i64;
    assert_eq!(bench.number(scanned).await, scanned_before, "rows read by sequential scans");
    (gaps[gaps.len() * 99 / 100], entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_queue_picks_a_job_up_at_once() {
    let jobs = if in_full() { 500 } else { 60 };
    let bench = Bench::new().await;
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let life = life(MS(10_000));
    // No poll to be picked up by.
    let settings = Settings { poll_interval: Duration::from_secs(3_600), ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>(move |_, _| {
            let _ = begun.send(Instant::now());
            async { Ok::<_, JobError>(()) }
        })
        .start(&life);
    let mut conn = bench.conn().await;
    let mut waits = Vec::new();
    for n in 0..jobs {
        jobs::enqueue(&mut conn, &Task { n }, EnqueueOptions::default()).await.unwrap();
        let committed = Instant::now();
        waits.push(begins.recv().await.unwrap().saturating_duration_since(committed));
        tokio::time::sleep(MS(5 + n.unsigned_abs() % 7)).await;
    }
    end(&life).await;
    waits.sort_unstable();
    let (p50, p99) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
    println!("from the enqueue's commit to the handler: p50 {p50:?}, p99 {p99:?}");
    // The figures that are promised are of a release build (`cargo xtask bench jobs`); this is one for development.
    let (patience, most) = if in_full() { (MS(5), MS(25)) } else { (MS(2_000), MS(10_000)) };
    assert!(p50 < patience && p99 < most, "p50 {p50:?}, p99 {p99:?}");
}

async fn backlog(bench: &Bench, jobs: i64) {
    let sql = "insert into job (queue, kind, args, max_attempts, timeout_ms)
               select 'default', 'task', jsonb_build_object('n', n), 3, 60000 from generate_series(1, $1) n";
    sqlx::query(sql).bind(jobs).execute(&bench.pool).await.unwrap();
    bench.execute("vacuum analyze job").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_waiting_jobs_slow_no_claim_down() {
    let many = if in_full() { 1_000_000 } else { 100_000 };
    let bench = Bench::new().await;
    backlog(&bench, 2_000).await;
    let (few_p99, few_read) = one_by_one(&bench).await;
    backlog(&bench, many).await;
    let (many_p99, many_read) = one_by_one(&bench).await;
    println!("claim and acknowledgement, p99: {few_p99:?} of 2000, {many_p99:?} of {many}");
    println!("entries of the index read for a job: {few_read} of 2000, {many_read} of {many}");
    // The overview, once for each worker that starts and then once a second, counts up to 10 000 of them three times: a hundred
    // or two for a job. Claims that walk the backlog would read all of it.
    assert!(many_read < few_read + 1_000, "{few_read} and {many_read} entries for a job");
    let patience = if in_full() { few_p99 * 2 + MS(5) } else { few_p99 * 10 + MS(200) };
    assert!(many_p99 < patience, "{few_p99:?} and {many_p99:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_left_open_during_heavy_work_does_not_make_the_queue_collapse() {
    let third = Duration::from_secs(if in_full() { 200 } else { 8 });
    let bench = Bench::new().await;
    let forgotten = forgotten_transaction(&bench).await;
    let life = life(MS(10_000));
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    bench
        .worker()
        .register::<Task, _, _, _>(move |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, JobError>(()) }
        })
        .start(&life);
    let tasks: Vec<Task> = (0..500).map(|n| Task { n }).collect();
    let mut conn = bench.conn().await;
    let (mut thirds, mut enqueued) = (Vec::new(), 0);
    for _ in 0..3 {
        let (begun, before) = (Instant::now(), done.load(Ordering::Relaxed));
        while begun.elapsed() < third {
            jobs::enqueue_many(&mut conn, &tasks, &EnqueueOptions::default()).await.unwrap();
            enqueued += tasks.len();
            // Never more than a little ahead of the worker.
            while enqueued - done.load(Ordering::Relaxed) > 2_000 && begun.elapsed() < third {
                tokio::time::sleep(MS(2)).await;
            }
        }
        thirds.push(done.load(Ordering::Relaxed) - before);
    }
    drop(forgotten);
    println!("jobs in each third of {:?} with a transaction left open: {thirds:?}", third * 3);
    assert!(thirds[2] * 3 > thirds[0], "jobs in each third: {thirds:?}");
    end(&life).await;
}
