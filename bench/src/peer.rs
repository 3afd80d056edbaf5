//! graphile_worker with what makes it fast: its local queue and batched completion. It keeps no history and has no fencing.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, WorkerContext, WorkerOptions,
    WorkerUtils,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::server::{Database, Server};

const NAME: &str = "bench_peer";
const SCHEMA: &str = "graphile_worker";

#[derive(Serialize, Deserialize)]
struct Noop {
    id: usize,
    data: String,
}

/// What the handler does.
#[derive(Clone, Debug)]
struct Count(Arc<AtomicUsize>);

#[derive(Clone, Debug)]
struct Begun(mpsc::UnboundedSender<Instant>);

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, ctx: WorkerContext) -> impl IntoTaskHandlerResult {
        if let Some(begun) = ctx.get_ext::<Begun>() {
            let _ = begun.0.send(Instant::now());
        }
        if let Some(count) = ctx.get_ext::<Count>() {
            count.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<(), String>(())
    }
}

fn options(database: &Database, concurrency: usize) -> WorkerOptions {
    let var = |name: &str, or: usize| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or);
    WorkerOptions::default()
        .pg_pool(database.pool.clone())
        .schema(SCHEMA)
        .concurrency(concurrency)
        .listen_os_shutdown_signals(false)
        .poll_interval(Duration::from_secs(1))
        .complete_job_batch_delay(Duration::from_millis(var("GW_DELAY", 2) as u64))
        .local_queue(
            LocalQueueConfig::default().with_size(var("GW_SIZE", 500)).with_queue_count(var("GW_QUEUES", 1)),
        )
        .define_job::<Noop>()
}

async fn enqueue_all(database: &Database, jobs: usize) -> Result<()> {
    enqueue_range(options(database, 1).init().await?.create_utils(), 0..jobs).await
}

async fn enqueue_range(utils: WorkerUtils, jobs: Range<usize>) -> Result<()> {
    for first in jobs.clone().step_by(1_000) {
        let batch: Vec<RawJobSpec> = (first..jobs.end.min(first + 1_000))
            .map(|id| RawJobSpec {
                identifier: Noop::IDENTIFIER.to_owned(),
                payload: serde_json::json!({ "id": id, "data": format!("test_{id}") }),
                spec: JobSpec::default(),
            })
            .collect();
        utils.add_raw_jobs(&batch).await?;
    }
    Ok(())
}

pub(crate) async fn drain(server: &Server, jobs: usize, concurrency: usize) -> Result<f64> {
    let database = server.database(NAME, false).await?;
    enqueue_all(&database, jobs).await?;
    database.execute("analyze graphile_worker._private_jobs").await?;
    let done = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let worker = Arc::new(options(&database, concurrency).add_extension(Count(done.clone())).init().await?);
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.run().await }
    });
    while done.load(Ordering::Relaxed) < jobs {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while database.is_true("select exists (select from graphile_worker._private_jobs)").await? {}
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    worker.request_shutdown();
    running.await??;
    drop(worker);
    database.drop().await?;
    Ok(rate)
}

pub(crate) async fn latency(server: &Server, samples: usize) -> Result<Vec<Duration>> {
    let database = server.database(NAME, false).await?;
    let (begun, mut starts) = mpsc::unbounded_channel();
    let worker = Arc::new(options(&database, 10).add_extension(Begun(begun)).init().await?);
    let running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.run().await }
    });
    let utils = worker.create_utils();
    let mut latencies = Vec::new();
    for id in 0..samples + 50 {
        let payload = serde_json::json!({ "id": id, "data": "" });
        utils.add_raw_job(Noop::IDENTIFIER, payload, JobSpec::default()).await?;
        let committed = Instant::now();
        let start = starts.recv().await.expect("the worker lives");
        if id >= 50 {
            latencies.push(start.saturating_duration_since(committed));
        }
        tokio::time::sleep(Duration::from_millis(5 + id as u64 % 7)).await;
    }
    worker.request_shutdown();
    running.await??;
    drop((worker, utils));
    database.drop().await?;
    Ok(latencies)
}

pub(crate) async fn enqueue(server: &Server, jobs: usize, connections: usize) -> Result<f64> {
    let database = server.database(NAME, false).await?;
    // The schema is made by the first worker.
    let worker = options(&database, 1).init().await?;
    let begun = Instant::now();
    let shares = crate::shares(jobs, connections)
        .map(|share| tokio::spawn(enqueue_range(worker.create_utils(), share)));
    for share in shares.collect::<Vec<_>>() {
        share.await??;
    }
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    database.drop().await?;
    Ok(rate)
}
