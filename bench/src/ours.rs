//! Our queue, as the project uses it: history and fencing on, the default pool, the default settings but the concurrency.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use config::ShutdownConfig;
use jobs::{EnqueueOptions, JobError, JobSpec, Settings, Worker};
use nix::sys::{resource::UsageWho, time::TimeValLike as _};
use runtime::Lifecycle;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::sync::mpsc;

use crate::server::{Database, Server};

const NAME: &str = "bench_ours";

#[derive(Serialize, Deserialize)]
struct Noop {
    id: usize,
    data: String,
}

impl JobSpec for Noop {
    const NAME: &'static str = "noop";
}

fn noops(range: Range<usize>) -> Vec<Noop> {
    range.map(|id| Noop { id, data: format!("test_{id}") }).collect()
}

async fn enqueue_all(database: &Database, jobs: usize) -> Result<()> {
    enqueue_range(&database.pool, 0..jobs).await
}

async fn enqueue_range(pool: &PgPool, jobs: Range<usize>) -> Result<()> {
    let mut conn = pool.acquire().await?;
    for first in jobs.clone().step_by(1_000) {
        let batch = noops(first..jobs.end.min(first + 1_000));
        jobs::enqueue_many(&mut conn, &batch, &EnqueueOptions::default()).await?;
    }
    Ok(())
}

fn life() -> Lifecycle {
    Lifecycle::new(ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(20) })
}

async fn end(life: &Lifecycle) -> Result<()> {
    life.begin_shutdown();
    let cut = life.run_until_stopped().await;
    ensure!(cut == 0 && life.failed_task().is_none(), "the worker did not end in an orderly way");
    Ok(())
}

/// A worker that counts what it ran.
fn start(database: &Database, concurrency: usize, life: &Lifecycle) -> Arc<AtomicUsize> {
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    Worker::new(
        database.pool.clone(),
        database.options.clone(),
        Settings { concurrency, ..Settings::default() },
    )
    .register::<Noop, _, _, _>(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, JobError>(()) }
    })
    .start(life);
    done
}

async fn until(done: &AtomicUsize, jobs: usize) {
    while done.load(Ordering::Relaxed) < jobs {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Jobs a second from the worker's start until the last one is acknowledged.
pub(crate) async fn drain(server: &Server, jobs: usize, concurrency: usize) -> Result<f64> {
    let database = server.database(NAME, true).await?;
    enqueue_all(&database, jobs).await?;
    database.execute("analyze job").await?;
    let (life, begun) = (life(), Instant::now());
    let done = start(&database, concurrency, &life);
    until(&done, jobs).await;
    while database.is_true("select exists (select from job)").await? {}
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    end(&life).await?;
    ensure!(done.load(Ordering::Relaxed) == jobs, "a job ran twice");
    let all = format!("select count(*) = {jobs} from job_done where state = 'completed'");
    ensure!(database.is_true(&all).await?, "the history is not complete");
    database.drop().await?;
    Ok(rate)
}

/// From the end of the enqueue's commit to the handler, on an idle queue.
pub(crate) async fn latency(server: &Server, samples: usize) -> Result<Vec<Duration>> {
    let database = server.database(NAME, true).await?;
    let (begun, mut starts) = mpsc::unbounded_channel();
    let life = life();
    Worker::new(database.pool.clone(), database.options.clone(), Settings::default())
        .register::<Noop, _, _, _>(move |_, _| {
            let _ = begun.send(Instant::now());
            async { Ok::<_, JobError>(()) }
        })
        .start(&life);
    let mut latencies = Vec::new();
    let mut conn = database.pool.acquire().await?;
    for id in 0..samples + 50 {
        let job = Noop { id, data: String::new() };
        jobs::enqueue(&mut conn, &job, EnqueueOptions::default()).await?;
        let committed = Instant::now();
        let start = starts.recv().await.expect("the worker lives");
        if id >= 50 {
            latencies.push(start.saturating_duration_since(committed));
        }
        tokio::time::sleep(Duration::from_millis(5 + id as u64 % 7)).await;
    }
    end(&life).await?;
    drop(conn);
    database.drop().await?;
    Ok(latencies)
}

/// Jobs a second over so many connections, each of which waits for its commits.
pub(crate) async fn enqueue(server: &Server, jobs: usize, connections: usize) -> Result<f64> {
    let database = server.database(NAME, true).await?;
    let begun = Instant::now();
    let shares = crate::shares(jobs, connections).map(|share| {
        let pool = database.pool.clone();
        tokio::spawn(async move { enqueue_range(&pool, share).await })
    });
    for share in shares.collect::<Vec<_>>() {
        share.await??;
    }
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    database.drop().await?;
    Ok(rate)
}

/// Jobs a second over the first `measured` of a backlog.
pub(crate) async fn head_of_backlog(server: &Server, backlog: usize, measured: usize) -> Result<f64> {
    let database = server.database(NAME, true).await?;
    database
        .execute(&format!(
            "insert into job (queue, kind, args, max_attempts, timeout_ms)
             select 'default', 'noop', jsonb_build_object('id', n, 'data', 'test_' || n), 10, 60000
             from generate_series(1, {backlog}) n"
        ))
        .await?;
    database.execute("vacuum analyze job").await?;
    database.execute("checkpoint").await?;
    let (life, begun) = (life(), Instant::now());
    let done = start(&database, 10, &life);
    until(&done, measured).await;
    let rate = done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    end(&life).await?;
    database.drop().await?;
    Ok(rate)
}

/// The part of one core that an idle worker takes.
pub(crate) async fn idle(server: &Server, time: Duration) -> Result<f64> {
    let database = server.database(NAME, true).await?;
    let life = life();
    let done = start(&database, 10, &life);
    enqueue_all(&database, 10).await?;
    until(&done, 10).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = processor_time()?;
    tokio::time::sleep(time).await;
    let used = processor_time()? - before;
    end(&life).await?;
    database.drop().await?;
    Ok(used.as_secs_f64() / time.as_secs_f64())
}

fn processor_time() -> Result<Duration> {
    let usage = nix::sys::resource::getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}
