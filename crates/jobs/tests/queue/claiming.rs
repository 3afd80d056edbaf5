//! Who gets which job: one worker at a time, most urgent first, within the limits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::common::{Bench, MS, Task, end, eventually, life, pool, quick, short_lease, worker_at};
use jobs::{EnqueueOptions, JobError, JobState, Priority, Settings};
use test_support::{FaultProxy, Mode};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_never_run_one_job_at_the_same_time() {
    let bench = Bench::new().await;
    let tasks: Vec<Task> = (0..300).map(|n| Task { n }).collect();
    jobs::enqueue_many(&mut bench.conn().await, &tasks, &EnqueueOptions::default()).await.unwrap();
    let runs: Arc<Mutex<HashMap<i64, u32>>> = Arc::default();
    let life = life(MS(10_000));
    for _ in 0..3 {
        let runs = runs.clone();
        let handler = move |_, task: Task| {
            let runs = runs.clone();
            async move {
                *runs.lock().unwrap().entry(task.n).or_default() += 1;
                tokio::time::sleep(MS(task.n.unsigned_abs() % 7)).await;
                Ok::<_, JobError>(())
            }
        };
        bench.worker().register::<Task, _, _, _>(handler).start(&life);
    }
    eventually("all done", async || bench.number("select count(*) from job_done").await == 300).await;
    end(&life).await;
    assert_eq!(bench.number("select count(*) from job").await, 0);
    let runs = runs.lock().unwrap();
    assert_eq!((runs.len(), runs.values().max()), (300, Some(&1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_worker_cut_off_past_its_lease_stops_its_jobs_and_cannot_complete_what_another_one_runs() {
    let bench = Bench::new().await;
    let (proxy, url) = FaultProxy::in_front_of(bench.database.url()).await;
    let (cut_off, healthy) = (life(MS(500)), life(MS(10_000)));
    // The job is given up a third of the lease before others may take it: on a busy machine that must be seconds.
    let lease = |seconds| Settings { lease: Duration::from_secs(seconds), ..quick() };
    let log = bench.log.clone();
    let handler = move |ctx: jobs::JobContext, task: Task| {
        let log = log.clone();
        async move {
            log.add("began");
            if task.n == 1 {
                // A zombie: cannot be stopped, and comes back with a result when others have its job. The thread is given up
                // first: it may be the one that the rest of this test's runtime waits for.
                tokio::task::block_in_place(|| {
                    let begun = std::time::Instant::now();
                    while log.count("rescued") < 2 && begun.elapsed() < MS(60_000) {
                        std::thread::sleep(MS(10));
                    }
                });
                log.add("zombie is done");
                return Ok::<_, JobError>("zombie");
            }
            ctx.cancelled().cancelled().await;
            log.add("told to stop");
            std::future::pending().await
        }
    };
    let zombie =
        worker_at(&pool(&url).await, &url, lease(6)).register::<Task, _, _, _>(handler).start(&cut_off);
    let ids = [bench.enqueue(1).await, bench.enqueue(2).await];
    bench.logged("began", 2).await;
    proxy.set(Mode::Blackhole);
    let (log, void) = (bench.log.clone(), CancellationToken::new());
    let finish = void.clone();
    let rescuer = move |_, _: Task| {
        let (log, finish) = (log.clone(), finish.clone());
        async move {
            log.add("rescued");
            finish.cancelled().await;
            Ok::<_, JobError>("rescuer")
        }
    };
    worker_at(&bench.pool, bench.database.url(), lease(20))
        .register::<Task, _, _, _>(rescuer)
        .start(&healthy);
    bench.logged("zombie is done", 1).await;
    // Its acknowledgement gets through while the other one is still at it.
    proxy.set(Mode::Pass);
    eventually("the zombie has acknowledged", async || zombie.held_jobs() == 0).await;
    void.cancel();
    for id in ids {
        let job = bench.until(id, JobState::Completed).await;
        assert_eq!((job.result, job.attempt), (Some("rescuer".into()), 2));
        assert_eq!(job.errors[0].error, "the worker was lost");
    }
    let log = bench.log.all();
    let first = |entry| log.iter().position(|e| e == entry).unwrap();
    assert!(first("told to stop") < first("rescued"), "before anyone else may take it: {log:?}");
    assert_eq!(bench.number("select count(*) from job_done").await, 2);
    cut_off.begin_shutdown();
    cut_off.run_until_stopped().await;
    end(&healthy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_workers_is_discarded_when_its_attempts_are_used_up() {
    let bench = Bench::new().await;
    let id = bench.enqueue(1).await;
    let life = life(MS(10_000));
    // Knows no such kind, but rescues: any worker does.
    worker_at(&bench.pool, bench.database.url(), short_lease()).queue("default", 1).start(&life);
    for attempt in 1..=3 {
        assert_eq!(bench.until(id, JobState::Ready).await.attempt, attempt - 1);
        // What a worker leaves behind that died with the job: a claim under a lease that has run out.
        sqlx::query(
            "with w as (insert into worker (id, name, version, queues, lease_until)
                        values (gen_random_uuid(), 'dead', '', '{}', now() - interval '1 s') returning id)
             update job set state = 'running', worker = w.id, attempt = attempt + 1, fence = fence + 1 from w",
        )
        .execute(&bench.pool)
        .await
        .unwrap();
        if attempt < 3 {
            eventually("rescued", async || bench.find(id).await.state == JobState::Ready).await;
        }
    }
    let job = bench.until(id, JobState::Discarded).await;
    assert_eq!(job.errors.len(), 3);
    assert_eq!(job.errors[2].error, "the worker was lost");
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_was_lost_is_given_back_without_using_an_attempt() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let log = bench.log.clone();
    worker_at(&bench.pool, bench.database.url(), short_lease())
        .register::<Task, _, _, _>(move |ctx: jobs::JobContext, _| {
            log.add(format!("attempt {}", ctx.attempt()));
            async { Ok::<_, JobError>(()) }
        })
        .start(&life);
    eventually("registered", async || bench.number("select count(*) from worker").await == 1).await;
    // As after a claim that was committed and whose answer never came: running for the worker, which does not know.
    sqlx::query(
        "insert into job (queue, kind, args, max_attempts, timeout_ms, state, worker, attempt, fence)
         select 'default', 'task', '{\"n\": 1}', 3, 1000, 'running', id, 1, 1 from worker",
    )
    .execute(&bench.pool)
    .await
    .unwrap();
    bench.logged("attempt 1", 1).await;
    eventually("done", async || bench.number("select count(*) from job_done").await == 1).await;
    end(&life).await;
    assert_eq!(bench.log.all(), ["attempt 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_lease_has_run_out_claims_nothing_until_it_has_a_new_one() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let settings = Settings { lease: Duration::from_secs(12), ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    eventually("registered", async || bench.number("select count(*) from worker").await == 1).await;
    // As after a pause of the whole process: it does not know it yet.
    bench.execute("update worker set lease_until = now() - interval '1 s'").await;
    let id = bench.enqueue(1).await;
    let job = bench.until(id, JobState::Completed).await;
    assert_eq!((job.attempt, job.errors.len()), (1, 0), "no attempt was lost: {job:?}");
    assert_eq!(bench.number("select count(*) from worker").await, 2, "a new lease under a new id");
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn urgent_jobs_go_first_and_within_a_priority_the_oldest() {
    let bench = Bench::new().await;
    for (n, priority) in
        [(1, Priority::Low), (2, Priority::Normal), (3, Priority::Normal), (4, Priority::Urgent)]
    {
        bench.enqueue_with(n, EnqueueOptions { priority: Some(priority), ..Default::default() }).await;
    }
    let later = EnqueueOptions {
        priority: Some(Priority::Urgent),
        delay: Some(Duration::from_secs(3_600)),
        ..Default::default()
    };
    bench.enqueue_with(5, later).await;
    let log = bench.log.clone();
    let worker = bench.worker().queue("default", 1).register::<Task, _, _, _>(move |_, task: Task| {
        log.add(task.n.to_string());
        async { Ok::<_, JobError>(()) }
    });
    let life = life(MS(10_000));
    worker.start(&life);
    eventually("four ran", async || bench.log.all().len() == 4).await;
    end(&life).await;
    assert_eq!(bench.log.all(), ["4", "2", "3", "1"]);
    assert_eq!(bench.number("select count(*) from job").await, 1, "the later one is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_this_binary_does_not_know_is_left_for_one_that_does() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    let options = EnqueueOptions::default;
    let unknown =
        jobs::enqueue_raw(&mut conn, "from_the_future", serde_json::json!({}), options()).await.unwrap();
    let known = bench.enqueue(1).await;
    let life = life(MS(10_000));
    bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(())).start(&life);
    bench.until(known, JobState::Completed).await;
    end(&life).await;
    let job = bench.find(unknown.id()).await;
    assert_eq!((job.state, job.attempt), (JobState::Ready, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_blocking_job_does_not_cost_its_worker_the_lease() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let id = bench.enqueue(1).await;
    let log = bench.log.clone();
    worker_at(&bench.pool, bench.database.url(), short_lease())
        .register::<Task, _, _, _>(move |_, _| {
            let log = log.clone();
            async move {
                log.add("began");
                // Wrong in a handler, and it happens: no await for longer than the lease, on the runtime's only thread.
                std::thread::sleep(MS(3_000));
                Ok::<_, JobError>(())
            }
        })
        .start(&life);
    bench.logged("began", 1).await;
    for _ in 0..25 {
        assert_eq!(bench.number("select count(*) from worker where lease_until > now()").await, 1);
        tokio::time::sleep(MS(100)).await;
    }
    let job = bench.until(id, JobState::Completed).await;
    assert_eq!((job.attempt, job.errors.len()), (1, 0));
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_claimed_ahead_are_handed_back_when_no_slot_gets_free() {
    let bench = Bench::new().await;
    // Short jobs first, so that the worker starts to prefetch; then long ones that fill its slots.
    let tasks: Vec<Task> = (0..40).map(|_| Task { n: 0 }).collect();
    jobs::enqueue_many(&mut bench.conn().await, &tasks, &EnqueueOptions::default()).await.unwrap();
    let settings = Settings { concurrency: 1, prefetch: 10, ..quick() };
    let life = life(MS(10_000));
    let log = bench.log.clone();
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>(move |_, task: Task| {
            let log = log.clone();
            async move {
                log.add("ran");
                tokio::time::sleep(MS(task.n.unsigned_abs())).await;
                Ok::<_, JobError>(())
            }
        })
        .start(&life);
    bench.logged("ran", 40).await;
    let tasks: Vec<Task> = (0..5).map(|_| Task { n: 1_500 }).collect();
    jobs::enqueue_many(&mut bench.conn().await, &tasks, &EnqueueOptions::default()).await.unwrap();
    eventually("claimed ahead", async || {
        bench.number("select count(*) from job where state = 'running'").await == 5
    })
    .await;
    eventually("handed back", async || {
        bench.number("select count(*) from job where state = 'ready' and attempt = 0").await == 4
    })
    .await;
    life.begin_shutdown();
    life.run_until_stopped().await;
}
