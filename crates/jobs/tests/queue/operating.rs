//! What an operator sees and does.

use std::time::Duration;

use jobs::{
    Cancelled, EnqueueOptions, JobError, JobState, ListFilter,
    testing::{drain_until_empty, fast_forward},
};
use uuid::Uuid;

use crate::common::{Bench, MS, Task, end, eventually, life};

#[tokio::test]
async fn a_job_can_be_followed_from_its_enqueueing_to_its_end_and_beyond() {
    let bench = Bench::new().await;
    let (owner, stranger) = (Uuid::new_v4(), Uuid::new_v4());
    let owned = |owner| EnqueueOptions { owner: Some(owner), ..Default::default() };
    let mine = bench.enqueue_with(1, owned(owner)).await;
    let theirs = bench.enqueue_with(2, owned(stranger)).await;
    let system = bench.enqueue(3).await;
    let mut conn = bench.conn().await;
    let mut ids = async |filter: ListFilter| -> Vec<i64> {
        jobs::list(&mut conn, &filter).await.unwrap().iter().map(|j| j.id).collect()
    };
    let of = |owner| ListFilter { owner: Some(owner), ..Default::default() };
    assert_eq!(ids(of(owner)).await, [mine]);
    let worker = bench.worker().register::<Task, _, _, _>(async |_, task: Task| {
        if task.n == 2 { Err(JobError::discard(anyhow::anyhow!("no"))) } else { Ok(()) }
    });
    drain_until_empty(&worker).await;
    let waiting = bench.enqueue(4).await;
    assert_eq!(ids(of(owner)).await, [mine], "found among the finished ones too");
    assert_eq!(ids(ListFilter::default()).await, [waiting, system, theirs, mine]);
    assert_eq!(ids(ListFilter { before: Some(system), limit: 1, ..Default::default() }).await, [theirs]);
    let discarded = ListFilter { state: Some(JobState::Discarded), ..Default::default() };
    assert_eq!(ids(discarded).await, [theirs]);
    let ready = ListFilter { state: Some(JobState::Ready), kind: Some("task".into()), ..Default::default() };
    assert_eq!(ids(ready).await, [waiting]);
    assert!(jobs::find(&mut bench.conn().await, 999_999).await.unwrap().is_none());
}

#[tokio::test]
async fn a_discarded_job_runs_again_under_its_id_with_its_history() {
    let bench = Bench::new().await;
    let id = bench.enqueue(1).await;
    let failing = bench
        .worker()
        .register::<Task, _, _, _>(async |_, _| Err::<(), _>(JobError::discard(anyhow::anyhow!("broken"))));
    drain_until_empty(&failing).await;
    let mut conn = bench.conn().await;
    assert!(jobs::retry(&mut conn, id).await.unwrap());
    assert_eq!(bench.find(id).await.state, JobState::Ready);
    let repaired = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>("fine"));
    drain_until_empty(&repaired).await;
    let job = bench.find(id).await;
    assert_eq!((job.state, job.attempt, job.errors.len()), (JobState::Completed, 1, 1));
    assert!(!jobs::retry(&mut conn, id).await.unwrap(), "what is completed stays completed");
    assert!(!jobs::retry(&mut conn, 999_999).await.unwrap());
}

#[tokio::test]
async fn a_job_that_waits_for_its_retry_can_be_made_due_or_cancelled() {
    let bench = Bench::new().await;
    let later = || EnqueueOptions { delay: Some(Duration::from_secs(3_600)), ..Default::default() };
    let (hurried, cancelled) = (bench.enqueue_with(1, later()).await, bench.enqueue_with(2, later()).await);
    let mut conn = bench.conn().await;
    assert!(jobs::retry(&mut conn, hurried).await.unwrap());
    assert_eq!(jobs::cancel(&mut conn, cancelled).await.unwrap(), Cancelled::Done);
    let worker = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()));
    assert_eq!(drain_until_empty(&worker).await, 1);
    assert_eq!(bench.find(hurried).await.state, JobState::Completed);
    assert_eq!(bench.find(cancelled).await.state, JobState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_and_workers_are_seen_as_they_are() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    bench.worker().queue("idle", 1).start(&life);
    let other = EnqueueOptions { queue: Some("unserved".into()), ..Default::default() };
    for n in 0..3 {
        bench.enqueue_with(n, other.clone()).await;
    }
    let later = EnqueueOptions { delay: Some(Duration::from_secs(60)), ..other };
    bench.enqueue_with(9, later).await;
    let mut conn = bench.conn().await;
    eventually("introduced", async || jobs::queues(&mut conn).await.unwrap().len() == 2).await;
    eventually("registered", async || jobs::workers(&mut conn).await.unwrap().len() == 1).await;
    let queues = jobs::queues(&mut conn).await.unwrap();
    let seen: Vec<_> = queues.iter().map(|q| (q.name.as_str(), q.ready, q.scheduled, q.running)).collect();
    assert_eq!(seen, [("idle", 0, 0, 0), ("unserved", 3, 1, 0)]);
    assert!(queues[1].oldest_ready_seconds > 0.0 && queues[0].oldest_ready_seconds == 0.0);
    let workers = jobs::workers(&mut conn).await.unwrap();
    assert_eq!((workers.len(), workers[0].queues.clone()), (1, vec!["idle".to_owned()]));
    end(&life).await;
}

#[tokio::test]
async fn partitions_are_made_ahead_filled_from_the_default_one_and_dropped_after_the_retention() {
    let bench = Bench::new().await;
    let worker = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()));
    bench.enqueue(1).await;
    drain_until_empty(&worker).await;
    assert_eq!(
        bench.number("select count(*) from job_done_default").await,
        1,
        "no partition yet, and no harm"
    );
    bench.execute("update job_done set finished_at = finished_at - interval '3 days'").await;
    let month = Duration::from_secs(30 * 86_400);
    let mut conn = bench.conn().await;
    let kept = jobs::keep_partitions(&mut conn, month).await.unwrap();
    assert_eq!((kept.created.len(), kept.dropped.len()), (9, 0), "{kept:?}");
    assert_eq!(bench.number("select count(*) from job_done_default").await, 0);
    assert_eq!(bench.number("select count(*) from job_done").await, 1);
    let again = jobs::keep_partitions(&mut conn, month).await.unwrap();
    assert_eq!(again, jobs::Kept::default());
    bench.enqueue(2).await;
    drain_until_empty(&worker).await;
    assert_eq!(bench.number("select count(*) from job_done_default").await, 0, "today has its own");
    let kept = jobs::keep_partitions(&mut conn, Duration::from_secs(2 * 86_400)).await.unwrap();
    assert_eq!(kept.dropped.len(), 1);
    assert_eq!(bench.number("select count(*) from job_done").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_found_while_its_row_moves_to_a_new_partition() {
    let bench = Bench::new().await;
    let worker = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()));
    let id = bench.enqueue(1).await;
    drain_until_empty(&worker).await;
    let mut mover = bench.pool.begin().await.unwrap();
    sqlx::raw_sql("lock table job_done_default in access exclusive mode").execute(&mut *mover).await.unwrap();
    let mut conn = bench.conn().await;
    let looking = jobs::find(&mut conn, id);
    let moving = async {
        eventually("it waits", async || {
            let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
            bench.number(waiting).await > 0
        })
        .await;
        jobs::keep_partitions(&mut mover, Duration::from_secs(30 * 86_400)).await.unwrap();
        mover.commit().await.unwrap();
    };
    let (found, ()) = tokio::join!(looking, moving);
    assert_eq!(bench.number("select count(*) from job_done_default").await, 0, "it was moved");
    assert_eq!(found.unwrap().expect("the job is there").state, JobState::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_keep_partitions_at_the_same_time_do_not_get_into_each_others_way() {
    let bench = Bench::new().await;
    let mut conns = [bench.conn().await, bench.conn().await, bench.conn().await];
    let month = Duration::from_secs(30 * 86_400);
    let kept =
        futures_util::future::join_all(conns.iter_mut().map(|c| jobs::keep_partitions(c, month))).await;
    let created: usize = kept.into_iter().map(|k| k.unwrap().created.len()).sum();
    assert!(created <= 8, "{created}");
    jobs::keep_partitions(&mut bench.conn().await, month).await.unwrap();
    assert_eq!(
        bench.number("select count(*) from pg_inherits where inhparent = 'job_done'::regclass").await,
        9
    );
}

#[tokio::test]
async fn pruning_keeps_what_is_still_needed() {
    let bench = Bench::new().await;
    bench
        .execute(
            "insert into job_unique values ('old', 1, now() - interval '1 s'), ('held', 2, 'infinity');
             insert into worker (id, name, version, queues, lease_until) values
                 (gen_random_uuid(), 'gone', '', '{}', now() - interval '2 hours'),
                 (gen_random_uuid(), 'alive', '', '{}', now() + interval '30 s');
             insert into cron_tick (name, tick) values
                 ('rare', now() - interval '90 days'), ('often', now() - interval '9 days'), ('often', now());",
        )
        .await;
    let mut conn = bench.conn().await;
    assert_eq!(jobs::prune(&mut conn).await.unwrap(), 3);
    assert_eq!(jobs::prune(&mut conn).await.unwrap(), 0);
    assert_eq!(bench.number("select count(*) from cron_tick where name = 'rare'").await, 1);
    fast_forward(&mut conn, Duration::from_secs(1)).await;
}
