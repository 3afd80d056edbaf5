//! Nothing is lost and nothing is made up, whatever happens in whatever order.

use std::time::Duration;

use jobs::{
    EnqueueOptions, JobContext, JobError, JobState, Worker, testing::drain_until_empty, testing::fast_forward,
};
use proptest::prelude::*;

use crate::common::{Bench, MS, Task, eventually};

#[derive(Debug, Clone)]
enum Step {
    /// A job whose handler does what the number says.
    Enqueue(i64),
    Cancel(usize),
    Retry(usize),
    Drain,
    Forward(u64),
    /// A worker dies with everything that waits.
    Crash,
    /// A worker is cut off so many milliseconds after its start, whatever it is doing.
    Kill(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_i64).prop_map(Step::Enqueue),
        2 => any::<prop::sample::Index>().prop_map(|i| Step::Cancel(i.index(100))),
        2 => any::<prop::sample::Index>().prop_map(|i| Step::Retry(i.index(100))),
        2 => Just(Step::Drain),
        1 => (1..5_000_u64).prop_map(Step::Forward),
        1 => Just(Step::Crash),
        1 => (0..60_u64).prop_map(Step::Kill),
    ]
}

fn worker(bench: &Bench) -> Worker {
    bench.worker().register::<Task, _, _, _>(async |ctx: JobContext, task: Task| match task.n {
        0 => Ok(()),
        1 => Err(anyhow::anyhow!("again").into()),
        2 => Err(JobError::discard(anyhow::anyhow!("never"))),
        3 => panic!("on purpose"),
        _ => Ok(ctx.transaction(async |tx| ctx.complete_in(tx, &1).await).await?),
    })
}

async fn rescue(bench: &Bench) {
    let life = crate::common::life(MS(10_000));
    bench.worker().queue("default", 1).start(&life);
    let running = "select count(*) from job where state = 'running'";
    eventually("rescued", async || bench.number(running).await == 0).await;
    crate::common::end(&life).await;
}

async fn check(steps: Vec<Step>) {
    let bench = Bench::new().await;
    let worker = worker(&bench);
    let mut conn = bench.conn().await;
    let mut ids = Vec::new();
    for step in &steps {
        match step {
            Step::Enqueue(n) => ids.push(bench.enqueue_with(*n, EnqueueOptions::default()).await),
            Step::Cancel(i) if !ids.is_empty() => {
                jobs::cancel(&mut conn, ids[i % ids.len()]).await.unwrap();
            }
            Step::Retry(i) if !ids.is_empty() => {
                jobs::retry(&mut conn, ids[i % ids.len()]).await.unwrap();
            }
            Step::Drain => {
                drain_until_empty(&worker).await;
            }
            Step::Forward(s) => fast_forward(&mut conn, Duration::from_secs(*s)).await,
            Step::Crash => {
                bench
                    .execute(
                        "update job set state = 'running', worker = gen_random_uuid(), attempt = attempt + 1,
                                        fence = fence + 1 where state = 'ready'",
                    )
                    .await;
                rescue(&bench).await;
            }
            Step::Kill(ms) => {
                let life = crate::common::life(MS(10_000));
                worker.clone().start(&life);
                tokio::time::sleep(MS(*ms)).await;
                life.stop_now();
                life.run_until_stopped().await;
                let busy = "select count(*) from pg_stat_activity where datname = current_database()
                            and pid <> pg_backend_pid() and backend_type = 'client backend' and state = 'active'";
                eventually("its statements have ended", async || bench.number(busy).await == 0).await;
                // As if its lease had run out.
                bench.execute("delete from worker").await;
                rescue(&bench).await;
            }
            _ => {}
        }
    }
    let live = bench.number("select count(*) from job").await;
    let [completed, discarded, cancelled] = [
        "select count(*) from job_done where state = 'completed'",
        "select count(*) from job_done where state = 'discarded'",
        "select count(*) from job_done where state = 'cancelled'",
    ];
    let [completed, discarded, cancelled] =
        [bench.number(completed).await, bench.number(discarded).await, bench.number(cancelled).await];
    assert_eq!(live + completed + discarded + cancelled, ids.len() as i64, "{steps:?}");
    for id in ids {
        let job = bench.find(id).await;
        assert_eq!(job.finished_at.is_some(), job.state.is_final(), "{job:?}");
        assert_ne!(job.state, JobState::Running, "{job:?}");
        assert!(job.attempt <= job.max_attempts, "{job:?}");
    }
}

#[test]
fn every_enqueued_job_is_live_or_final_and_never_both() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..40))| {
        runtime.block_on(check(steps));
    });
}
