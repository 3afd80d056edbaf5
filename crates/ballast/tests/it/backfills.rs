//! Backfills: killed in the middle they go on where they were, and nothing is done twice.

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::PgPool;

use crate::support::{Deployment, Process, eventually, free_port};

const EVENTS: i64 = 12_000;

async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// Events as they were stored before their type was: most with one, some without, some no JSON; and a trigger that counts
/// how often each is written.
async fn old_events(pool: &PgPool) {
    let setup = format!(
        r#"insert into webhook_event (source, event_id, body, processed_at)
               select 'crm', 'msg_' || n,
                      convert_to(case n % 10 when 0 then '{{}}' when 1 then 'no json' else '{{"type":"t' || n % 7 || '"}}' end, 'UTF8'),
                      now()
               from generate_series(1, {EVENTS}) n;
           create table written (event_id text);
           create function note() returns trigger language plpgsql as
               $$ begin insert into written values (new.event_id); return new; end $$;
           create trigger note after update on webhook_event for each row execute function note();
           analyze webhook_event;"#
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(setup)).execute(pool).await.unwrap();
}

async fn enqueue(deployment: &Deployment, args: &str) {
    let vars = [("DATABASE_URL", deployment.database.url())];
    let mut command = Process::command(&["jobs", "enqueue", "backfill_event_types", args], &vars);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const LEFT: &str = "select count(*) from job where kind = 'backfill_event_types'";
const ROWS_DONE: &str = "select coalesce(max(rows_done), 0) from backfill";

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_is_killed_in_the_middle_goes_on_where_it_was_and_writes_no_row_twice() {
    let deployment = Deployment::new().await;
    let pool = deployment.database.pool();
    old_events(pool).await;
    enqueue(&deployment, "{}").await;
    let worker = || {
        deployment.start("worker", free_port(), &[("WORKER_LEASE", "1s"), ("WORKER_POLL_INTERVAL", "100ms")])
    };
    for round in 1..=2 {
        let mut process = worker();
        let until = round * EVENTS / 4;
        eventually("some batches are done", Duration::from_secs(60), async || {
            number(pool, ROWS_DONE).await >= until
        })
        .await;
        process.signal(Signal::SIGKILL);
        process.wait(Duration::from_secs(10)).await;
        let done = number(pool, ROWS_DONE).await;
        assert!(done < EVENTS, "killed in the middle, in round {round}: {done}");
    }
    let progress: serde_json::Value =
        sqlx::query_scalar("select progress from job where kind = 'backfill_event_types'")
            .fetch_one(pool)
            .await
            .unwrap();
    assert_eq!(progress["total"], EVENTS, "{progress}");
    assert!(progress["done"].as_i64().unwrap() > EVENTS / 4, "{progress}");
    let _last = worker();
    eventually("the backfill is through", Duration::from_secs(120), async || number(pool, LEFT).await == 0)
        .await;

    let done = "select (result->>'rows')::bigint from job_done where kind = 'backfill_event_types' and state = 'completed'";
    assert_eq!(number(pool, done).await, EVENTS, "every row was looked at once");
    let typed = number(pool, "select count(*) from webhook_event where event_type is not null").await;
    assert_eq!(typed, EVENTS / 10 * 8);
    assert_eq!(number(pool, "select count(*) from written").await, typed, "every row was written once");
    // Materialized, so that nothing but JSON is read as JSON.
    let wrong = "with typed as materialized (select * from webhook_event where event_type is not null)
                 select count(*) from typed where event_type <> convert_from(body, 'UTF8')::json->>'type'";
    assert_eq!(number(pool, wrong).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_is_through_does_nothing_more_until_it_is_told_to_begin_anew() {
    let deployment = Deployment::new().await;
    let pool = deployment.database.pool();
    sqlx::raw_sql(
        r#"insert into webhook_event (source, event_id, body) values ('crm', 'a', '{"type":"t"}')"#,
    )
    .execute(pool)
    .await
    .unwrap();
    let _worker = deployment.start("worker", free_port(), &[("WORKER_POLL_INTERVAL", "100ms")]);
    let through = async || {
        let patience = Duration::from_secs(60);
        eventually("the backfill is through", patience, async || number(pool, LEFT).await == 0).await;
    };
    let typed = "select count(*) from webhook_event where event_type = 't'";
    enqueue(&deployment, "{}").await;
    through().await;
    assert_eq!(number(pool, typed).await, 1);
    sqlx::query("update webhook_event set event_type = null").execute(pool).await.unwrap();
    enqueue(&deployment, "{}").await;
    through().await;
    assert_eq!(number(pool, typed).await, 0, "it was through before");
    enqueue(&deployment, r#"{"again": true}"#).await;
    through().await;
    assert_eq!(number(pool, typed).await, 1);
}
