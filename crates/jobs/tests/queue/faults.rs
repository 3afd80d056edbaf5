//! Postgres goes away in the middle of things.

use std::time::{Duration, Instant};

use jobs::{JobContext, JobError, JobState, Settings};
use sqlx::Connection as _;
use test_support::{FaultProxy, Mode};

use crate::common::{Bench, MS, Task, end, eventually, life, pool, quick, short_lease, worker_at};

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_connection_is_terminated_listens_again() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    // No poll to fall back on.
    let settings = Settings { poll_interval: Duration::from_secs(3_600), ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings)
        .register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    let id = bench.enqueue(1).await;
    bench.until(id, JobState::Completed).await;
    let listeners = "from pg_stat_activity where datname = current_database() and query like 'LISTEN%'";
    let terminate = format!("select count(pg_terminate_backend(pid)) {listeners}");
    let ended: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(terminate)).fetch_one(&bench.pool).await.unwrap();
    assert_eq!(ended, 1);
    // Enqueued while nobody listens, or after: found either way.
    let id = bench.enqueue(2).await;
    bench.until(id, JobState::Completed).await;
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_notification_was_lost_is_found_by_the_poll() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let handle = bench.worker().register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(())).start(&life);
    let first = bench.enqueue(1).await;
    bench.until(first, JobState::Completed).await;
    // Committed without telling anybody.
    bench
        .execute(
            "insert into job (queue, kind, args, max_attempts, timeout_ms)
             values ('default', 'task', '{\"n\": 2}', 1, 1000)",
        )
        .await;
    eventually("done", async || bench.number("select count(*) from job_done").await == 2).await;
    assert!(handle.last_claim_age().is_some());
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_waits_while_its_partition_is_made_is_written_all_the_same() {
    for in_transaction in [false, true] {
        let bench = Bench::new().await;
        let life = life(MS(10_000));
        let log = bench.log.clone();
        bench
            .worker()
            .register::<Task, _, _, _>(move |ctx: JobContext, _: Task| {
                let log = log.clone();
                async move {
                    log.add("began");
                    if in_transaction {
                        ctx.transaction(async |tx| ctx.complete_in(tx, &"stored").await).await?;
                    }
                    Ok::<_, JobError>(())
                }
            })
            .start(&life);
        // Who reads what the default partition caught stops the making of a partition in the middle.
        let mut conn = bench.conn().await;
        let mut reader = conn.begin().await.unwrap();
        sqlx::raw_sql("select from job_done_default").execute(&mut *reader).await.unwrap();
        let mut keeper = bench.conn().await;
        let keep = jobs::keep_partitions(&mut keeper, Duration::from_secs(30 * 86_400));
        let meanwhile = async {
            waits_for_a_lock(&bench, "%attach partition%").await;
            let id = bench.enqueue(1).await;
            waits_for_a_lock(&bench, ACKNOWLEDGEMENT).await;
            reader.rollback().await.unwrap();
            id
        };
        let (kept, id) = tokio::join!(keep, meanwhile);
        kept.unwrap();
        done_at_the_first_attempt(&bench, id).await;
        assert_eq!(bench.number("select count(*) from only job_done_default").await, 0);
        end(&life).await;
    }
}

const ACKNOWLEDGEMENT: &str = "%insert into job_done (%";
const CLAIM: &str = "%update job%set state = 'running'%";
const COMMIT: &str = "COMMIT";

/// Waits until the one statement of this kind waits for a lock.
async fn waits_for_a_lock(bench: &Bench, statement: &str) {
    let sql = "select count(*) from pg_stat_activity
               where datname = current_database() and wait_event_type = 'Lock' and query like $1";
    eventually("it waits for a lock", async || {
        sqlx::query_scalar::<_, i64>(sql).bind(statement).fetch_one(&bench.pool).await.unwrap() == 1
    })
    .await;
}

/// Ends the connection of the one statement of this kind, once it waits for a lock.
async fn terminate(bench: &Bench, statement: &str) {
    waits_for_a_lock(bench, statement).await;
    let sql = "select pg_terminate_backend(pid) from pg_stat_activity
               where datname = current_database() and wait_event_type = 'Lock' and query like $1";
    assert!(sqlx::query_scalar::<_, bool>(sql).bind(statement).fetch_one(&bench.pool).await.unwrap());
}

/// The job began once, and there is one outcome.
async fn done_at_the_first_attempt(bench: &Bench, id: i64) {
    let job = bench.until(id, JobState::Completed).await;
    assert_eq!((job.attempt, job.errors.len()), (1, 0), "{job:?}");
    assert_eq!(bench.log.count("began"), 1);
    assert_eq!(bench.number("select count(*) from job").await, 0);
    assert_eq!(bench.number("select count(*) from job_done").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_and_an_acknowledgement_whose_connections_are_terminated_are_made_again() {
    for (lock, statement) in [
        ("lock table queue in access exclusive mode", CLAIM),
        ("lock table job_done_default in access exclusive mode", ACKNOWLEDGEMENT),
    ] {
        let bench = Bench::new().await;
        let id = bench.enqueue(1).await;
        let mut conn = bench.conn().await;
        let mut tx = conn.begin().await.unwrap();
        sqlx::raw_sql(lock).execute(&mut *tx).await.unwrap();
        let life = life(MS(10_000));
        let log = bench.log.clone();
        bench
            .worker()
            .register::<Task, _, _, _>(move |_, _| {
                log.add("began");
                async { Ok::<_, JobError>(()) }
            })
            .start(&life);
        terminate(&bench, statement).await;
        tx.rollback().await.unwrap();
        done_at_the_first_attempt(&bench, id).await;
        end(&life).await;
    }
}

/// Case W6: the database commits, and the worker does not learn of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_whose_answer_was_lost_is_written_once() {
    let bench = Bench::new().await;
    let (proxy, url) = FaultProxy::in_front_of(bench.database.url()).await;
    let mut conn = bench.conn().await;
    let mut tx = conn.begin().await.unwrap();
    sqlx::raw_sql("lock table job_done_default in access exclusive mode").execute(&mut *tx).await.unwrap();
    let id = bench.enqueue(1).await;
    let life = life(MS(10_000));
    let log = bench.log.clone();
    let handle = worker_at(&pool(&url).await, &url, quick())
        .register::<Task, _, _, _>(move |_, _| {
            log.add("began");
            async { Ok::<_, JobError>(()) }
        })
        .start(&life);
    waits_for_a_lock(&bench, ACKNOWLEDGEMENT).await;
    proxy.set(Mode::Blackhole);
    tx.rollback().await.unwrap();
    eventually("it is written", async || bench.number("select count(*) from job_done").await == 1).await;
    proxy.set(Mode::Refuse);
    assert_eq!(handle.held_jobs(), 1, "the worker does not know it");
    tokio::time::sleep(MS(300)).await;
    proxy.set(Mode::Pass);
    eventually("the worker knows it", async || handle.held_jobs() == 0).await;
    done_at_the_first_attempt(&bench, id).await;
    end(&life).await;
}

/// Case W6, for a job that completes in its own transaction: the database goes away while that commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_effect_and_completion_whose_answer_was_lost_counts_and_one_that_was_cut_off_does_not() {
    for cut_off in [false, true] {
        let bench = Bench::new().await;
        let (proxy, url) = FaultProxy::in_front_of(bench.database.url()).await;
        // The commit waits for whoever holds the lock.
        bench
            .execute(
                "create table effect (n bigint);
                 create function wait() returns trigger language plpgsql as $$
                     begin perform pg_advisory_xact_lock(6); return null; end $$;
                 create constraint trigger wait after insert on effect deferrable initially deferred
                     for each row execute function wait()",
            )
            .await;
        let mut conn = bench.conn().await;
        let mut holder = conn.begin().await.unwrap();
        sqlx::raw_sql("select pg_advisory_xact_lock(6)").execute(&mut *holder).await.unwrap();
        let id = bench.enqueue(1).await;
        let life = life(MS(10_000));
        let log = bench.log.clone();
        let handle = worker_at(&pool(&url).await, &url, quick())
            .register::<Task, _, _, _>(move |ctx: JobContext, task: Task| {
                let log = log.clone();
                async move {
                    log.add("began");
                    ctx.transaction(async |tx| {
                        sqlx::query("insert into effect values ($1)").bind(task.n).execute(&mut *tx).await?;
                        Ok::<_, JobError>(ctx.complete_in(tx, &"stored").await?)
                    })
                    .await
                }
            })
            .start(&life);
        waits_for_a_lock(&bench, COMMIT).await;
        if cut_off {
            terminate(&bench, COMMIT).await;
            holder.rollback().await.unwrap();
            let job = bench.until(id, JobState::Completed).await;
            assert_eq!((job.attempt, job.errors.len(), bench.log.count("began")), (2, 1, 2), "{job:?}");
        } else {
            proxy.set(Mode::Blackhole);
            holder.rollback().await.unwrap();
            eventually("committed", async || bench.number("select count(*) from effect").await == 1).await;
            proxy.set(Mode::Refuse);
            tokio::time::sleep(MS(300)).await;
            assert_eq!(handle.held_jobs(), 1, "the worker does not know it");
            proxy.set(Mode::Pass);
            eventually("the worker knows it", async || handle.held_jobs() == 0).await;
            done_at_the_first_attempt(&bench, id).await;
        }
        assert_eq!(bench.find(id).await.result, Some("stored".into()));
        assert_eq!(bench.number("select count(*) from effect").await, 1);
        end(&life).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_with_more_jobs_than_one_statement_rescues_is_rescued_at_once() {
    let bench = Bench::new().await;
    bench
        .execute(
            "insert into job (queue, kind, args, max_attempts, timeout_ms, state, worker, attempt, fence)
             select 'default', 'task', '{\"n\": 1}', 3, 1000, 'running', gen_random_uuid(), 1, 1
             from generate_series(1, 1700)",
        )
        .await;
    let life = life(MS(10_000));
    // Looks after the lost when it starts, and then every five seconds.
    let settings = Settings { lease: Duration::from_secs(1_800), ..quick() };
    worker_at(&bench.pool, bench.database.url(), settings).queue("default", 1).start(&life);
    let running = "select count(*) from job where state = 'running'";
    let begun = Instant::now();
    eventually("rescued", async || bench.number(running).await < 1_700).await;
    let first = begun.elapsed();
    eventually("rescued", async || bench.number(running).await == 0).await;
    assert!(begun.elapsed() < first + MS(8_000), "not one statement every five seconds");
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_terminated_again_and_again_loses_and_doubles_nothing() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let log = bench.log.clone();
    bench
        .worker()
        .register::<Task, _, _, _>(move |_, task: Task| {
            log.add(task.n.to_string());
            async {
                tokio::time::sleep(MS(3)).await;
                Ok::<_, JobError>(())
            }
        })
        .start(&life);
    for n in 0..200 {
        bench.enqueue(n).await;
        if n % 40 == 20 {
            let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                        where datname = current_database() and pid <> pg_backend_pid()";
            let mut conn = bench.conn().await;
            sqlx::raw_sql(kill).execute(&mut conn).await.unwrap();
        }
    }
    let count = "select count(*) from job_done where state = 'completed'";
    eventually("all done", async || {
        // The test's own pool loses its connections too.
        let mut conn = bench.conn().await;
        sqlx::query_scalar::<_, i64>(count).fetch_one(&mut conn).await.unwrap() == 200
    })
    .await;
    end(&life).await;
    for n in 0..200 {
        assert_eq!(bench.log.count(&n.to_string()), 1, "job {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_waits_for_a_database_that_is_away_for_a_moment() {
    let bench = Bench::new().await;
    let (proxy, url) = FaultProxy::in_front_of(bench.database.url()).await;
    let life = life(MS(10_000));
    let log = bench.log.clone();
    worker_at(&pool(&url).await, &url, quick())
        .register::<Task, _, _, _>(move |_, _| {
            let log = log.clone();
            async move {
                log.add("began");
                tokio::time::sleep(MS(300)).await;
                log.add("ended");
                Ok::<_, JobError>(())
            }
        })
        .start(&life);
    let id = bench.enqueue(1).await;
    bench.logged("began", 1).await;
    proxy.set(Mode::Refuse);
    bench.logged("ended", 1).await;
    tokio::time::sleep(MS(500)).await;
    assert_eq!(bench.find(id).await.state, JobState::Running);
    proxy.set(Mode::Pass);
    let job = bench.until(id, JobState::Completed).await;
    assert_eq!((job.attempt, bench.log.count("began")), (1, 1));
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lease_is_kept_while_the_pool_is_exhausted() {
    let bench = Bench::new().await;
    let life = life(MS(10_000));
    let small = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(MS(10_000))
        .connect(bench.database.url())
        .await
        .unwrap();
    let id = bench.enqueue(1).await;
    let log = bench.log.clone();
    worker_at(&small, bench.database.url(), short_lease())
        .register::<Task, _, _, _>(move |ctx: JobContext, _| {
            let log = log.clone();
            async move {
                // Holds the only connection for longer than the lease.
                let _conn = ctx.pool().acquire().await?;
                log.add("began");
                tokio::time::sleep(MS(2_500)).await;
                Ok::<_, JobError>(())
            }
        })
        .start(&life);
    bench.logged("began", 1).await;
    let other = crate::common::life(MS(10_000));
    bench.worker().queue("default", 1).start(&other);
    let job = bench.until(id, JobState::Completed).await;
    assert_eq!((job.attempt, job.errors.len()), (1, 0));
    end(&other).await;
    end(&life).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_before_its_database_waits_for_it() {
    let bench = Bench::new().await;
    let (proxy, url) = FaultProxy::in_front_of(bench.database.url()).await;
    proxy.set(Mode::Refuse);
    let life = life(MS(10_000));
    let lazy = sqlx::postgres::PgPoolOptions::new().acquire_timeout(MS(500)).connect_lazy(&url).unwrap();
    let handle = worker_at(&lazy, &url, quick())
        .register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    let id = bench.enqueue(1).await;
    tokio::time::sleep(MS(700)).await;
    assert!(handle.last_claim_age().is_none());
    proxy.set(Mode::Pass);
    bench.until(id, JobState::Completed).await;
    assert!(handle.last_claim_age().unwrap() < Duration::from_secs(5));
    end(&life).await;
}
