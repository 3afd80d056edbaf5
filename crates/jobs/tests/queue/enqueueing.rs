//! Enqueueing: with the caller's transaction, once for unique jobs, and not at all for what cannot be stored.

use std::time::Duration;

use jobs::{
    EnqueueOptions, Enqueued, Error, JobError, JobSpec, JobState, Settings, Unique,
    testing::{assert_enqueued, assert_not_enqueued, drain_until_empty, fast_forward},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Connection as _;

use crate::common::{Bench, MS, Task, end, life, quick, worker_at};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_rolled_back_transaction_never_was() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let log = bench.log.clone();
    bench
        .worker()
        .register::<Task, _, _, _>(move |_, task: Task| {
            log.add(task.n.to_string());
            async { Ok::<_, JobError>(()) }
        })
        .start(&life);
    let mut conn = bench.conn().await;
    let mut tx = conn.begin().await.unwrap();
    jobs::enqueue(&mut tx, &Task { n: 1 }, EnqueueOptions::default()).await.unwrap();
    tokio::time::sleep(MS(250)).await;
    assert!(bench.log.all().is_empty(), "invisible before the commit");
    tx.rollback().await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    let id = jobs::enqueue(&mut tx, &Task { n: 2 }, EnqueueOptions::default()).await.unwrap().id();
    tx.commit().await.unwrap();
    bench.until(id, JobState::Completed).await;
    end(&life).await;
    assert_eq!(bench.log.all(), ["2"]);
}

#[tokio::test]
async fn a_transaction_tells_the_workers_once_of_each_queue_however_many_jobs_it_enqueues() {
    let bench = Bench::new().await;
    let mut listener = sqlx::postgres::PgListener::connect(bench.database.url()).await.unwrap();
    listener.listen("jobs").await.unwrap();
    let mut conn = bench.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let bulk = || EnqueueOptions { queue: Some("bulk".into()), ..Default::default() };
    for n in 0..100 {
        jobs::enqueue(&mut tx, &Task { n }, EnqueueOptions::default()).await.unwrap();
    }
    for n in 0..10 {
        jobs::enqueue(&mut tx, &Task { n }, bulk()).await.unwrap();
    }
    jobs::enqueue_many(&mut tx, &[Task { n: 1 }, Task { n: 2 }], &bulk()).await.unwrap();
    tx.commit().await.unwrap();
    // Whatever else the transaction had told would come before this.
    let last = EnqueueOptions { queue: Some("last".into()), ..Default::default() };
    jobs::enqueue(&mut conn, &Task { n: 0 }, last).await.unwrap();
    let mut heard = Vec::new();
    while heard.last().is_none_or(|queue| queue != "last") {
        heard.push(listener.recv().await.unwrap().payload().to_owned());
    }
    assert_eq!(heard, ["default", "bulk", "last"]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sync {
    user: u32,
    reason: String,
}

impl JobSpec for Sync {
    const NAME: &'static str = "sync";
    fn unique(&self) -> Option<Unique> {
        Some(Unique::by_fields(&["user"]))
    }
}

fn sync(user: u32, reason: &str) -> Sync {
    Sync { user, reason: reason.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_fifty_racing_enqueues_of_a_unique_job_one_makes_it_and_all_others_learn_its_id() {
    let bench = Bench::new().await;
    let url = bench.database.url().to_owned();
    let racers = (0..50).map(|n| {
        let url = url.clone();
        async move {
            let mut conn = sqlx::PgConnection::connect(&url).await.unwrap();
            let mut tx = conn.begin().await.unwrap();
            let enqueued =
                jobs::enqueue(&mut tx, &sync(7, &n.to_string()), EnqueueOptions::default()).await.unwrap();
            // The transaction is still good after a duplicate.
            sqlx::query("select 1").execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
            enqueued
        }
    });
    let outcomes: Vec<Enqueued> = futures_util::future::join_all(racers).await;
    let new: Vec<_> = outcomes.iter().filter(|e| e.is_new()).collect();
    assert_eq!(new.len(), 1);
    assert!(outcomes.iter().all(|e| e.id() == new[0].id()), "{outcomes:?}");
    assert_eq!(bench.number("select count(*) from job").await, 1);
}

#[tokio::test]
async fn without_a_period_the_key_is_free_when_the_job_has_ended() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    let mut enqueue = async |user| {
        jobs::enqueue(&mut conn, &sync(user, "r"), EnqueueOptions::default()).await.unwrap().is_new()
    };
    assert!(enqueue(1).await);
    assert!(!enqueue(1).await, "it waits");
    assert!(enqueue(2).await, "another user");
    let worker = bench.worker().register::<Sync, _, _, _>(async |_, _| Ok::<_, JobError>(()));
    drain_until_empty(&worker).await;
    assert!(enqueue(1).await, "it is done");
    let waiting = bench.number("select max(id) from job").await;
    assert_eq!(jobs::cancel(&mut bench.conn().await, waiting).await.unwrap(), jobs::Cancelled::Done);
    assert!(enqueue(1).await, "it was cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_left_open_after_a_duplicate_does_not_keep_the_job_from_ending() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    let id = jobs::enqueue(&mut conn, &sync(1, "r"), EnqueueOptions::default()).await.unwrap().id();
    let mut open = conn.begin().await.unwrap();
    let duplicate = jobs::enqueue(&mut open, &sync(1, "r"), EnqueueOptions::default()).await.unwrap();
    assert_eq!(duplicate, Enqueued::Duplicate(id));
    let life = life(MS(10_000));
    bench.worker().register::<Sync, _, _, _>(async |_, _| Ok::<_, JobError>(())).start(&life);
    bench.until(id, JobState::Completed).await;
    end(&life).await;
    open.rollback().await.unwrap();
}

#[tokio::test]
async fn numbers_that_make_no_sense_are_brought_into_range() {
    let bench = Bench::new().await;
    let options = EnqueueOptions {
        delay: Some(Duration::MAX),
        timeout: Some(Duration::MAX),
        max_attempts: Some(-1),
        ..Default::default()
    };
    let job = bench.find(bench.enqueue_with(1, options).await).await;
    assert_eq!(job.max_attempts, 1);
}

#[tokio::test]
async fn a_time_before_all_calendars_is_now_and_one_at_their_end_is_waited_for() {
    let bench = Bench::new().await;
    let at = |run_at| EnqueueOptions { run_at: Some(run_at), ..Default::default() };
    let past = bench.enqueue_with(1, at(chrono::DateTime::<chrono::Utc>::MIN_UTC)).await;
    let future = bench.enqueue_with(2, at(chrono::DateTime::<chrono::Utc>::MAX_UTC)).await;
    let worker =
        bench.worker().register::<Task, _, _, _>(async |ctx: jobs::JobContext, _| match ctx.attempt() {
            1 => Err(JobError::RetryAt(chrono::DateTime::<chrono::Utc>::MIN_UTC, anyhow::anyhow!("at once"))),
            2 => Err(JobError::retry_in(Duration::MAX, anyhow::anyhow!("never"))),
            _ => Ok(()),
        });
    assert_eq!(drain_until_empty(&worker).await, 2, "due at once, and due again at once");
    let (past, future) = (bench.find(past).await, bench.find(future).await);
    assert_eq!((past.state, past.attempt), (JobState::Ready, 2), "{past:?}");
    assert!(past.run_at - past.created_at > chrono::TimeDelta::days(36_000), "in a century: {past:?}");
    assert_eq!((future.state, future.attempt), (JobState::Ready, 0), "{future:?}");
    // And a real worker, which sleeps until then, does what comes meanwhile.
    let life = life(MS(10_000));
    bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(())).start(&life);
    let id = bench.enqueue(3).await;
    bench.until(id, JobState::Completed).await;
    end(&life).await;
}

#[tokio::test]
async fn a_priority_below_or_above_the_four_is_not_stored() {
    let bench = Bench::new().await;
    for priority in [-1, 4, i16::MAX] {
        let insert = sqlx::query(
            "insert into job (queue, kind, priority, args, max_attempts, timeout_ms)
             values ('default', 'task', $1, '{}', 1, 1)",
        );
        let refused = insert.bind(priority).execute(&bench.pool).await.unwrap_err();
        assert!(refused.to_string().contains("job_priority_check"), "{refused}");
        assert!(serde_json::from_value::<jobs::Priority>(json!(priority)).is_err());
    }
}

#[tokio::test]
async fn with_a_period_the_key_outlives_the_job() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    let hourly = || EnqueueOptions {
        unique: Some(Unique::by_key("report").for_period(Duration::from_secs(3_600))),
        ..Default::default()
    };
    let first = jobs::enqueue(&mut conn, &Task { n: 1 }, hourly()).await.unwrap();
    let worker = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()));
    drain_until_empty(&worker).await;
    let second = jobs::enqueue(&mut conn, &Task { n: 2 }, hourly()).await.unwrap();
    assert_eq!(second, Enqueued::Duplicate(first.id()));
    fast_forward(&mut conn, Duration::from_secs(3_601)).await;
    assert!(jobs::enqueue(&mut conn, &Task { n: 3 }, hourly()).await.unwrap().is_new());
}

#[tokio::test]
async fn the_order_of_a_payloads_fields_does_not_make_it_another_job() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    let options = || EnqueueOptions { unique: Some(Unique::by_args()), ..Default::default() };
    let mut reversed = serde_json::Map::new();
    reversed.insert("b".into(), 2.into());
    reversed.insert("a".into(), json!({"y": 1, "x": [1.0]}));
    let first = jobs::enqueue_raw(&mut conn, "k", json!({"a": {"x": [1.0], "y": 1}, "b": 2}), options())
        .await
        .unwrap();
    let second = jobs::enqueue_raw(&mut conn, "k", reversed.into(), options()).await.unwrap();
    assert_eq!(second, Enqueued::Duplicate(first.id()));
    let other = jobs::enqueue_raw(&mut conn, "k", json!({"a": 1}), options()).await.unwrap();
    assert!(other.is_new());
}

#[tokio::test]
async fn what_postgres_would_refuse_is_refused_before_it_spoils_the_transaction() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    let mut tx = conn.begin().await.unwrap();
    let deep = (0..150).fold(json!(1), |inner, _| json!([inner]));
    for (kind, args) in [
        ("k", json!({"text": "nul \0"})),
        ("k", deep),
        ("k", json!("x".repeat(jobs::MAX_PAYLOAD_BYTES))),
        ("no spaces", json!({})),
        ("", json!({})),
    ] {
        let refused = jobs::enqueue_raw(&mut tx, kind, args, EnqueueOptions::default()).await;
        let refused = refused.unwrap_err();
        assert!(!matches!(refused, Error::Database(_)), "{refused:?}");
    }
    let hostile = json!({"sql": "'; drop table job; --", "unicode": "\u{1f689}\u{202e}", "big": 1e308});
    let id = jobs::enqueue_raw(&mut tx, "k", hostile.clone(), EnqueueOptions::default()).await.unwrap().id();
    tx.commit().await.unwrap();
    assert_eq!(bench.find(id).await.args, hostile);
}

#[tokio::test]
async fn the_helpers_for_tests_find_what_was_enqueued() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    assert_not_enqueued::<Sync>(&mut conn).await;
    jobs::enqueue(&mut conn, &sync(3, "why"), EnqueueOptions::default()).await.unwrap();
    assert_eq!(assert_enqueued::<Sync>(&mut conn).await, sync(3, "why"));
    assert_not_enqueued::<Task>(&mut conn).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_later_runs_when_its_time_has_come() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    // Nothing but the timer would find it in time.
    let settings = Settings { poll_interval: Duration::from_secs(3_600), ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    let options = EnqueueOptions { delay: Some(MS(400)), ..Default::default() };
    let id = bench.enqueue_with(1, options).await;
    let job = bench.until(id, JobState::Completed).await;
    assert!(job.started_at.unwrap() >= job.run_at);
    end(&life).await;
}
