//! How many jobs run at a time: over all workers, in one worker, and none in a paused queue.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::common::{Bench, MS, Task, end, eventually, life, quick, worker_at};
use jobs::{EnqueueOptions, JobError, JobSpec, JobState, Settings};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Scarce;

impl JobSpec for Scarce {
    const NAME: &'static str = "scarce";
    const GLOBAL_LIMIT: Option<u16> = Some(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_global_limit_holds_over_all_workers_together() {
    let bench = Bench::new().await;
    for _ in 0..20 {
        jobs::enqueue(&mut bench.conn().await, &Scarce, EnqueueOptions::default()).await.unwrap();
    }
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let life = life(MS(10_000));
    for _ in 0..3 {
        let (running, most) = (running.clone(), most.clone());
        let handler = move |_, _: Scarce| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(MS(20)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, JobError>(())
            }
        };
        bench.worker().register::<Scarce, _, _, _>(handler).start(&life);
    }
    eventually("all done", async || bench.number("select count(*) from job_done").await == 20).await;
    end(&life).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_global_limit_runs_when_its_time_has_come_and_not_at_the_next_poll() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    // No poll to fall back on.
    let settings = Settings { poll_interval: Duration::from_secs(3_600), ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Scarce, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    let later = EnqueueOptions { delay: Some(MS(800)), ..Default::default() };
    let id = jobs::enqueue(&mut bench.conn().await, &Scarce, later).await.unwrap().id();
    let job = bench.until(id, JobState::Completed).await;
    assert!(job.started_at.unwrap() >= job.run_at);
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_global_limit_is_found_in_any_queue() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    // In queues that are not its own it is found within a third of this.
    let settings = Settings { lease: Duration::from_secs(6), ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings)
        .queue("bulk", 2)
        .register::<Scarce, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    let elsewhere = EnqueueOptions { queue: Some("bulk".to_owned()), ..Default::default() };
    let id = jobs::enqueue(&mut bench.conn().await, &Scarce, elsewhere).await.unwrap().id();
    assert_eq!(bench.until(id, JobState::Completed).await.queue, "bulk");
    let id = jobs::enqueue(&mut bench.conn().await, &Scarce, EnqueueOptions::default()).await.unwrap().id();
    assert_eq!(bench.until(id, JobState::Completed).await.queue, "scarce", "its own, unless told otherwise");
    end(&life).await;
}

#[derive(Serialize, Deserialize)]
struct Mail;

impl JobSpec for Mail {
    const NAME: &'static str = "mail";
    const QUEUE: &'static str = "mail";
}

/// How many run at this moment, and the most that ever did.
#[derive(Clone, Default)]
struct Gauge(Arc<(AtomicUsize, AtomicUsize)>);

impl Gauge {
    async fn around(&self, work: impl Future<Output = ()>) -> Result<(), JobError> {
        let (now, most) = &*self.0;
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        work.await;
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_of_a_worker_share_its_slots_and_none_starves_another() {
    let bench = Bench::new().await;
    let (all, mails) = (Gauge::default(), Gauge::default());
    let life = life(MS(10_000));
    let settings = Settings { concurrency: 4, ..quick() };
    let finish = tokio_util::sync::CancellationToken::new();
    let worker = worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>({
            let (all, log, finish) = (all.clone(), bench.log.clone(), finish.clone());
            move |_, _| {
                log.add("task");
                let (all, finish) = (all.clone(), finish.clone());
                async move { all.around(finish.cancelled()).await }
            }
        })
        .register::<Mail, _, _, _>({
            let (all, mails) = (all.clone(), mails.clone());
            move |_, _| {
                let (all, mails) = (all.clone(), mails.clone());
                async move { all.around(async { _ = mails.around(tokio::time::sleep(MS(10))).await }).await }
            }
        });
    worker.start(&life);
    let tasks: Vec<Task> = (0..20).map(|n| Task { n }).collect();
    jobs::enqueue_many(&mut bench.conn().await, &tasks, &EnqueueOptions::default()).await.unwrap();
    // One slot of its own and the two that are shared; the fourth is the other queue's.
    bench.logged("task", 3).await;
    let mail = jobs::enqueue(&mut bench.conn().await, &Mail, EnqueueOptions::default()).await.unwrap().id();
    bench.until(mail, JobState::Completed).await;
    assert_eq!(bench.log.count("task"), 3);
    // When both have more than enough to do, whoever waits gets the next slot.
    let many: Vec<Mail> = (0..60).map(|_| Mail).collect();
    jobs::enqueue_many(&mut bench.conn().await, &many, &EnqueueOptions::default()).await.unwrap();
    finish.cancel();
    let tasks: Vec<Task> = (0..3_000).map(|n| Task { n }).collect();
    jobs::enqueue_many(&mut bench.conn().await, &tasks, &EnqueueOptions::default()).await.unwrap();
    eventually("all done", async || bench.number("select count(*) from job_done").await == 3_081).await;
    end(&life).await;
    assert!(mails.most() >= 2, "it never got a shared slot");
    assert_eq!(all.most(), 4, "the settings' number is that of the worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_is_left_alone_until_it_is_resumed() {
    let bench = Bench::new().await;
    let mut conn = bench.conn().await;
    jobs::pause_queue(&mut conn, "default").await.unwrap();
    let id = bench.enqueue(1).await;
    let life = life(MS(10_000));
    bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(())).start(&life);
    tokio::time::sleep(MS(300)).await;
    assert_eq!(bench.find(id).await.state, JobState::Ready);
    let queues = jobs::queues(&mut conn).await.unwrap();
    assert!(queues[0].paused_at.is_some() && queues[0].ready == 1);
    jobs::resume_queue(&mut conn, "default").await.unwrap();
    bench.until(id, JobState::Completed).await;
    end(&life).await;
}
