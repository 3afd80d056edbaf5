//! The end of a worker: nothing is lost, no attempt is burnt.

use std::time::{Duration, Instant};

use jobs::{EnqueueOptions, JobContext, JobError, JobState, Settings};

use runtime::Phase;

use crate::common::{Bench, MS, Task, end, eventually, life, quick, worker_at};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ends_within_the_grace_is_finished_and_nothing_new_begins() {
    let bench = Bench::new().await;
    let ids = [bench.enqueue(1).await, bench.enqueue(2).await];
    let life = life(MS(10_000));
    let log = bench.log.clone();
    let settings = Settings { concurrency: 1, ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>(move |ctx: JobContext, _| {
            log.add("began");
            async move {
                tokio::time::sleep(MS(400)).await;
                assert!(!ctx.cancelled().is_cancelled());
                Ok::<_, JobError>(())
            }
        })
        .start(&life);
    bench.logged("began", 1).await;
    end(&life).await;
    assert_eq!(bench.find(ids[0]).await.state, JobState::Completed);
    let second = bench.find(ids[1]).await;
    assert_eq!((second.state, second.attempt), (JobState::Ready, 0));
    assert_eq!(bench.number("select count(*) from worker").await, 0, "it signed off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_longer_than_the_grace_is_handed_back_with_its_attempt_and_the_next_worker_runs_it_at_once() {
    let bench = Bench::new().await;
    let (polite, deaf) = (bench.enqueue(1).await, bench.enqueue(2).await);
    let (first, second) = (life(MS(10_000)), life(MS(10_000)));
    let log = bench.log.clone();
    bench
        .worker()
        .register::<Task, _, _, _>(move |ctx: JobContext, task: Task| {
            log.add("began");
            async move {
                if task.n == 1 {
                    ctx.cancelled().cancelled().await;
                    return Err(anyhow::anyhow!("told to stop").into());
                }
                std::future::pending::<Result<(), JobError>>().await
            }
        })
        .start(&first);
    bench.logged("began", 2).await;
    // An hour until it would look by itself: it must be told.
    let settings = Settings { poll_interval: Duration::from_secs(3_600), ..Settings::default() };
    let (log, next) = (bench.log.clone(), second.clone());
    let begun = Instant::now();
    first.begin_shutdown();
    // Straight to the last call: the grace is over.
    for phase in [Phase::Closing, Phase::LastCall] {
        first.token(phase).unwrap().cancel();
    }
    let stopped = first.run_until_stopped();
    let watch = async {
        // The next worker is there before the old one goes, as in a rolling deploy.
        worker_at(&bench.pool, bench.database.url(), settings)
            .register::<Task, _, _, _>(move |ctx: JobContext, _| {
                log.add(format!("again, attempt {}", ctx.attempt()));
                async { Ok::<_, JobError>(()) }
            })
            .start(&next);
        for id in [polite, deaf] {
            let job = bench.until(id, JobState::Completed).await;
            assert!(job.errors.is_empty(), "{job:?}");
        }
    };
    let (cut, ()) = tokio::join!(stopped, watch);
    assert_eq!(cut, 0);
    assert!(begun.elapsed() < MS(15_000), "not by the end of a lease: {:?}", begun.elapsed());
    end(&second).await;
    assert_eq!(bench.log.count("again, attempt 1"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_claimed_ahead_are_handed_back_at_the_drain() {
    let bench = Bench::new().await;
    let tasks: Vec<Task> = (0..2_000).map(|n| Task { n }).collect();
    let ids = jobs::enqueue_many(&mut bench.conn().await, &tasks, &EnqueueOptions::default()).await.unwrap();
    let settings = Settings { concurrency: 2, prefetch: 50, ..quick() };
    let life = life(MS(10_000));
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>(async |_, _| {
            tokio::time::sleep(MS(5)).await;
            Ok::<_, JobError>(())
        })
        .start(&life);
    eventually("under way", async || bench.number("select count(*) from job_done").await > 50).await;
    end(&life).await;
    assert_eq!(bench.number("select count(*) from job where state <> 'ready' or attempt <> 0").await, 0);
    let done = bench.number("select count(*) from job_done where attempt = 1").await;
    assert!(done < 2_000, "the test is too short to show anything");
    assert_eq!(done + bench.number("select count(*) from job").await, ids.len() as i64);
}
