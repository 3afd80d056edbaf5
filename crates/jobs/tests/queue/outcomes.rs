//! What becomes of an attempt: result, retry, discard, cancellation, timeout, panic.

use std::time::Duration;

use jobs::{
    Cancelled, EnqueueOptions, JobContext, JobError, JobSpec, JobState, Progress,
    testing::{drain_until_empty, fast_forward},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::common::{Bench, MS, Task, end, eventually, life};

#[tokio::test]
async fn what_a_handler_returns_is_the_jobs_result_and_unit_stores_nothing() {
    let bench = Bench::new().await;
    let (one, two) = (bench.enqueue(1).await, bench.enqueue(2).await);
    let worker = bench.worker().register::<Task, _, _, _>(async |_, task: Task| {
        Ok::<_, JobError>((task.n == 1).then(|| json!({ "n": task.n })))
    });
    assert_eq!(drain_until_empty(&worker).await, 2);
    let (one, two) = (bench.find(one).await, bench.find(two).await);
    assert_eq!((one.state, one.result), (JobState::Completed, Some(json!({"n": 1}))));
    assert_eq!((two.state, two.result), (JobState::Completed, None));
    assert!(one.finished_at.unwrap() >= one.started_at.unwrap() && one.started_at.unwrap() >= one.created_at);
}

#[tokio::test]
async fn a_failed_job_is_retried_with_growing_delays_and_then_discarded_with_its_history() {
    let bench = Bench::new().await;
    let id = bench.enqueue(1).await;
    let worker = bench.worker().register::<Task, _, _, _>(async |ctx: JobContext, _| {
        let cause = std::io::Error::other("disk on fire\0");
        Err::<(), _>(JobError::from(anyhow::Error::new(cause).context(format!("attempt {}", ctx.attempt()))))
    });
    for attempt in 1..=3_i16 {
        assert_eq!(drain_until_empty(&worker).await, 1, "one attempt, then it waits");
        let job = bench.find(id).await;
        assert_eq!(job.attempt, attempt);
        if attempt < 3 {
            let waits = (job.run_at - job.started_at.unwrap()).num_milliseconds();
            assert_eq!(job.state, JobState::Ready);
            assert!(waits <= 1_000 * (1 << attempt) + 200, "attempt {attempt} waits {waits} ms");
        }
        fast_forward(&mut bench.conn().await, Duration::from_secs(10)).await;
    }
    let job = bench.find(id).await;
    assert_eq!(job.state, JobState::Discarded);
    let errors: Vec<_> = job.errors.iter().map(|e| (e.attempt, e.error.as_str())).collect();
    let text = |n| format!("attempt {n}: disk on fire\u{fffd}");
    assert_eq!(errors, [(1, text(1).as_str()), (2, text(2).as_str()), (3, text(3).as_str())]);
}

#[tokio::test]
async fn a_handler_chooses_when_to_retry_or_that_it_is_no_use() {
    let bench = Bench::new().await;
    let (later, never, then) = (bench.enqueue(1).await, bench.enqueue(2).await, bench.enqueue(3).await);
    let in_an_hour = bench.find(then).await.created_at + chrono::TimeDelta::hours(1);
    let worker = bench.worker().register::<Task, _, _, _>(move |_, task: Task| {
        std::future::ready(Err::<(), _>(match task.n {
            1 => JobError::retry_in(Duration::from_secs(600), anyhow::anyhow!("busy")),
            2 => JobError::discard(anyhow::anyhow!("no such address")),
            _ => JobError::RetryAt(in_an_hour, anyhow::anyhow!("closed until then")),
        }))
    });
    drain_until_empty(&worker).await;
    let job = bench.find(later).await;
    let waits = (job.run_at - job.started_at.unwrap()).num_seconds();
    assert!((599..=601).contains(&waits), "{waits}");
    let job = bench.find(never).await;
    assert_eq!((job.state, job.attempt), (JobState::Discarded, 1));
    assert_eq!(job.errors[0].error, "no such address");
    let job = bench.find(then).await;
    assert_eq!((job.state, job.run_at, job.attempt), (JobState::Ready, in_an_hour, 1));
    assert_eq!(job.errors[0].error, "closed until then");
    fast_forward(&mut bench.conn().await, Duration::from_secs(3_599 - 60)).await;
    assert_eq!(
        drain_until_empty(&worker).await,
        1,
        "the one that is due after ten minutes, and not yet this one"
    );
    fast_forward(&mut bench.conn().await, Duration::from_secs(61)).await;
    drain_until_empty(&worker).await;
    assert_eq!(bench.find(then).await.attempt, 2);
}

#[tokio::test]
async fn of_many_failures_the_last_ten_are_kept() {
    let bench = Bench::new().await;
    let id = bench.enqueue_with(1, EnqueueOptions { max_attempts: Some(12), ..Default::default() }).await;
    let worker = bench.worker().register::<Task, _, _, _>(async |ctx: JobContext, _| {
        Err::<(), _>(anyhow::anyhow!("failure {}", ctx.attempt()).into())
    });
    for _ in 0..12 {
        assert_eq!(drain_until_empty(&worker).await, 1);
        // The longest backoff, and more.
        fast_forward(&mut bench.conn().await, Duration::from_secs(3_700)).await;
    }
    let job = bench.find(id).await;
    assert_eq!((job.state, job.attempt), (JobState::Discarded, 12));
    let kept: Vec<_> = job.errors.iter().map(|e| (e.attempt, e.error.clone())).collect();
    assert_eq!(kept, (3..=12_i16).map(|n| (n, format!("failure {n}"))).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_the_database_is_busy_is_acknowledged_together() {
    const JOBS: usize = 900;
    let bench = Bench::new().await;
    bench
        .execute(
            "create table statement (at timestamptz default clock_timestamp());
             create function note() returns trigger language plpgsql as $$
                 begin insert into statement default values; return null; end $$;
             create trigger note after insert on job_done for each statement execute function note()",
        )
        .await;
    let tasks: Vec<Task> = (0..JOBS as i64).map(|n| Task { n }).collect();
    jobs::enqueue_many(&mut bench.conn().await, &tasks, &EnqueueOptions::default()).await.unwrap();
    let mut busy = bench.pool.begin().await.unwrap();
    sqlx::raw_sql("lock table job_done_default in access exclusive mode").execute(&mut *busy).await.unwrap();
    let life = life(MS(10_000));
    let log = bench.log.clone();
    bench
        .worker()
        .register::<Task, _, _, _>(move |_, _| {
            log.add("done");
            async { Ok::<_, JobError>(()) }
        })
        .start(&life);
    bench.logged("done", JOBS).await;
    busy.rollback().await.unwrap();
    let done = "select count(*) from job_done where state = 'completed'";
    eventually("all are acknowledged", async || bench.number(done).await == JOBS as i64).await;
    end(&life).await;
    // The one that waited, what gathered meanwhile, and the last few, which may have come a moment later.
    let statements = bench.number("select count(*) from statement").await;
    assert!((1..=8).contains(&statements), "{statements} statements for {JOBS} jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_caught_and_a_hang_is_ended_while_others_go_on() {
    let bench = Bench::new().await;
    let once = || EnqueueOptions { max_attempts: Some(1), timeout: Some(MS(200)), ..Default::default() };
    let panics = bench.enqueue_with(1, once()).await;
    let hangs = bench.enqueue_with(2, once()).await;
    let works = bench.enqueue_with(3, once()).await;
    let life = life(MS(10_000));
    bench
        .worker()
        .register::<Task, _, _, _>(async |_, task: Task| match task.n {
            1 => panic!("on purpose"),
            2 => std::future::pending::<Result<(), JobError>>().await,
            _ => Ok(()),
        })
        .start(&life);
    assert_eq!(bench.until(panics, JobState::Discarded).await.errors[0].error, "panicked: on purpose");
    assert_eq!(bench.until(hangs, JobState::Discarded).await.errors[0].error, "timed out after 200ms");
    bench.until(works, JobState::Completed).await;
    end(&life).await;
}

#[tokio::test]
async fn a_payload_that_does_not_fit_its_kind_is_discarded_with_the_reason() {
    let bench = Bench::new().await;
    let id = jobs::enqueue_raw(&mut bench.conn().await, "task", json!({"n": "x"}), EnqueueOptions::default())
        .await;
    let worker = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()));
    drain_until_empty(&worker).await;
    let job = bench.find(id.unwrap().id()).await;
    assert_eq!((job.state, job.attempt), (JobState::Discarded, 1));
    assert!(
        job.errors[0].error.contains("does not fit") && job.errors[0].error.contains("invalid type"),
        "{job:?}"
    );
}

#[tokio::test]
async fn a_result_that_cannot_be_stored_ends_the_job_instead_of_running_it_again() {
    let bench = Bench::new().await;
    let id = bench.enqueue(1).await;
    let worker = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>("nul: \0"));
    assert_eq!(drain_until_empty(&worker).await, 1);
    let job = bench.find(id).await;
    assert_eq!(job.state, JobState::Discarded);
    assert!(job.errors[0].error.contains("result cannot be stored"), "{job:?}");
}

#[tokio::test]
async fn effect_and_completion_commit_together_or_not_at_all() {
    let bench = Bench::new().await;
    bench.execute("create table effect (n bigint)").await;
    let (good, forgotten) = (bench.enqueue(1).await, bench.enqueue(2).await);
    let worker = bench.worker().register::<Task, _, _, _>(async |ctx: JobContext, task: Task| {
        let mut tx = ctx.pool().begin().await?;
        sqlx::query("insert into effect values ($1)").bind(task.n).execute(&mut *tx).await?;
        ctx.complete_in(&mut tx, &json!({"stored": task.n})).await?;
        if task.n == 1 {
            tx.commit().await?;
        }
        Ok::<_, JobError>(())
    });
    assert_eq!(drain_until_empty(&worker).await, 2);
    let job = bench.find(good).await;
    assert_eq!((job.state, job.result), (JobState::Completed, Some(json!({"stored": 1}))));
    let job = bench.find(forgotten).await;
    assert_eq!(job.state, JobState::Ready, "not committed is not completed");
    assert_eq!(job.errors[0].error, "complete_in was called but not committed");
    assert_eq!(bench.number("select count(*) from effect").await, 1);
}

#[tokio::test]
async fn complete_in_refuses_a_job_that_somebody_else_has_by_now() {
    let bench = Bench::new().await;
    bench.execute("create table effect (n bigint)").await;
    let id = bench.enqueue(1).await;
    let worker = bench.worker().register::<Task, _, _, _>(async |ctx: JobContext, _| {
        if ctx.attempt() == 1 {
            // As if this worker had been declared dead and another one had claimed the job.
            sqlx::query("update job set fence = fence + 1").execute(ctx.pool()).await?;
        }
        ctx.transaction(async |tx| {
            sqlx::query("insert into effect values (1)").execute(&mut *tx).await?;
            Ok::<_, JobError>(ctx.complete_in(tx, &()).await?)
        })
        .await
    });
    drain_until_empty(&worker).await;
    assert_eq!(bench.find(id).await.state, JobState::Running, "the other one still runs it");
    assert_eq!(bench.number("select count(*) from effect").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_cancelled_and_shows_its_progress_before() {
    let bench = Bench::new().await;
    let id = bench.enqueue(1).await;
    let life = life(MS(10_000));
    bench
        .worker()
        .register::<Task, _, _, _>(async |ctx: JobContext, _| {
            ctx.progress(1, 3, Some("first")).await;
            ctx.cancelled().cancelled().await;
            Err::<(), _>(anyhow::anyhow!("stopped early").into())
        })
        .start(&life);
    eventually("progress", async || bench.find(id).await.progress.is_some()).await;
    let progress = bench.find(id).await.progress.unwrap();
    assert_eq!(progress, Progress { done: 1, total: 3, note: Some("first".into()) });
    assert_eq!(jobs::cancel(&mut bench.conn().await, id).await.unwrap(), Cancelled::Requested);
    let job = bench.until(id, JobState::Cancelled).await;
    assert_eq!(job.progress.unwrap().done, 1);
    assert_eq!(jobs::cancel(&mut bench.conn().await, id).await.unwrap(), Cancelled::NotLive);
    end(&life).await;
}

#[tokio::test]
async fn progress_is_written_now_and_then_and_at_the_end() {
    let bench = Bench::new().await;
    let id = bench.enqueue(1).await;
    let worker = bench.worker().register::<Task, _, _, _>(async |ctx: JobContext, _| {
        let written = async || -> i64 {
            sqlx::query_scalar("select (progress->>'done')::bigint from job")
                .fetch_one(ctx.pool())
                .await
                .unwrap()
        };
        let begun = std::time::Instant::now();
        let mut changes = 0;
        let mut last = -1;
        for done in 0..100 {
            ctx.progress(done, 100, None).await;
            let now = written().await;
            changes += i64::from(now != last);
            last = now;
        }
        let most = begun.elapsed().as_millis() as i64 / 250 + 1;
        assert!((1..=most).contains(&changes), "{changes} writes, at most {most}");
        ctx.progress(100, 100, Some("nul \0")).await;
        Ok::<_, JobError>(())
    });
    drain_until_empty(&worker).await;
    let job = bench.find(id).await;
    assert_eq!(job.state, JobState::Completed, "{:?}", job.errors);
    assert_eq!(job.progress, Some(Progress { done: 100, total: 100, note: Some("nul \u{fffd}".into()) }));
}

#[derive(Serialize, Deserialize)]
struct Chain(u32);

impl JobSpec for Chain {
    const NAME: &'static str = "chain";
}

#[tokio::test]
async fn a_job_enqueues_the_next_one_in_the_transaction_that_completes_it() {
    let bench = Bench::new().await;
    jobs::enqueue(&mut bench.conn().await, &Chain(3), EnqueueOptions::default()).await.unwrap();
    let worker = bench.worker().register::<Chain, _, _, _>(async |ctx: JobContext, Chain(left): Chain| {
        ctx.transaction(async |tx| {
            if left > 0 {
                jobs::enqueue(tx, &Chain(left - 1), EnqueueOptions::default()).await?;
            }
            Ok::<_, JobError>(ctx.complete_in(tx, &left).await?)
        })
        .await
    });
    assert_eq!(drain_until_empty(&worker).await, 4);
    assert_eq!(bench.number("select count(*) from job_done where state = 'completed'").await, 4);
}
