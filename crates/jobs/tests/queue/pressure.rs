//! Large tables, and tables that vacuum cannot clean.

use std::time::Instant;

use jobs::{EnqueueOptions, JobError, JobState, Settings};
use sqlx::{Connection as _, PgConnection};

use crate::common::{Bench, MS, Task, end, eventually, life, pool, quick, worker_at};

/// A session with a transaction that somebody forgot: nothing that dies from now on can be cleaned up.
pub(crate) async fn forgotten_transaction(bench: &Bench) -> PgConnection {
    let mut conn = bench.conn().await;
    let begin = "begin isolation level repeatable read; select count(*) from job";
    sqlx::raw_sql(begin).execute(&mut conn).await.unwrap();
    conn
}

/// Entries that scans of the index of waiting jobs have read.
async fn entries_read(bench: &Bench) -> i64 {
    // Statistics arrive within a second, or when a connection ends.
    tokio::time::sleep(MS(1_200)).await;
    bench.number("select idx_tup_read from pg_stat_user_indexes where indexrelname = 'job_ready'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_claim_nor_acknowledgement_reads_the_whole_table() {
    let bench = Bench::new().await;
    bench
        .execute(
            "insert into job (queue, kind, priority, run_at, args, max_attempts, timeout_ms)
             select 'default', 'task', n % 4, now() + case when n % 3 = 0 then interval '1 day' else '-1 s' end,
                    '{\"n\": 1}', 3, 1000
             from generate_series(1, 100000) n; analyze job",
        )
        .await;
    let rows_read = "select seq_tup_read from pg_stat_user_tables where relname = 'job'";
    // Statistics arrive within a second.
    tokio::time::sleep(MS(1_100)).await;
    let before = bench.number(rows_read).await;
    let life = life(MS(10_000));
    let workers = pool(bench.database.url()).await;
    worker_at(&workers, bench.database.url(), quick())
        .register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    // Enough for Postgres to switch to a generic plan, which knows neither the limit nor the kinds.
    eventually("20000 done", async || bench.number("select count(*) from job_done").await >= 20_000).await;
    end(&life).await;
    // A connection reports what is left when it ends.
    workers.close().await;
    tokio::time::sleep(MS(300)).await;
    assert_eq!(bench.number(rows_read).await - before, 0, "rows read by sequential scans");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_jobs_for_later_are_in_nobodys_way() {
    let bench = Bench::new().await;
    bench
        .execute(
            "insert into job (queue, kind, run_at, args, max_attempts, timeout_ms)
             select 'default', 'task', now() + interval '1 h' + n * interval '1 ms', '{\"n\": 1}', 3, 1000
             from generate_series(1, 100000) n; analyze job",
        )
        .await;
    let life = life(MS(10_000));
    let workers = pool(bench.database.url()).await;
    let before = entries_read(&bench).await;
    worker_at(&workers, bench.database.url(), quick())
        .register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    for n in 0..20 {
        let id = bench.enqueue(n).await;
        bench.until(id, JobState::Completed).await;
    }
    end(&life).await;
    workers.close().await;
    let read = entries_read(&bench).await - before;
    // The overview counts up to 10 000 of them now and then.
    assert!(read < 100_000, "{read} entries were read for 20 jobs");
    assert_eq!(bench.number("select count(*) from job").await, 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_do_not_walk_over_what_a_long_transaction_keeps_from_being_cleaned_up() {
    const REMAINS: i64 = 200_000;
    let bench = Bench::new().await;
    let forgotten = forgotten_transaction(&bench).await;
    // What minutes of work leave behind.
    bench
        .execute(
            "insert into job (queue, kind, args, max_attempts, timeout_ms)
             select 'default', 'task', '{\"n\": 1}', 3, 1000 from generate_series(1, 200000); delete from job",
        )
        .await;
    // Enqueued now, and committed when everybody looks at later times.
    let mut late = bench.conn().await;
    let mut late = late.begin().await.unwrap();
    let late_id = jobs::enqueue(&mut late, &Task { n: -1 }, EnqueueOptions::default()).await.unwrap().id();
    let life = life(MS(10_000));
    let workers = pool(bench.database.url()).await;
    let before = entries_read(&bench).await;
    worker_at(&workers, bench.database.url(), Settings { poll_interval: MS(1_000), ..quick() })
        .register::<Task, _, _, _>(async |_, _| Ok::<_, JobError>(()))
        .start(&life);
    let (mut jobs, begun) = (0, Instant::now());
    while jobs < 100 || begun.elapsed() < MS(7_000) {
        let id = bench.enqueue(jobs).await;
        bench.until(id, JobState::Completed).await;
        jobs += 1;
    }
    late.commit().await.unwrap();
    bench.until(late_id, JobState::Completed).await;
    end(&life).await;
    let seconds = begun.elapsed().as_secs().cast_signed();
    workers.close().await;
    let walks = (entries_read(&bench).await - before) / REMAINS;
    // Without a floor it would be twice for each job. From the front now and then, and for the overview: by the clock.
    assert!(walks < jobs / 2 + seconds, "walked over {walks} times for {jobs} jobs in {seconds} s");
    drop(forgotten);
}
