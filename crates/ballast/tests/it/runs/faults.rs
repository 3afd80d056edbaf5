//! What goes wrong on the way.

use db::redis_client::cmd;
use test_support::{FaultProxy, Mode, TestDatabase, test_redis};

use super::{S, names, open, prompt, read, rest, some, start, state, until, usage};
use crate::support::{TestApp, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_engine_does_wrong_ends_the_run_with_its_name_and_costs_what_was_used() {
    let app = TestApp::with(&[
        ("ENGINE_RETRIES", "0"),
        ("ENGINE_FIRST_TOKEN_TIMEOUT", "500ms"),
        ("ENGINE_IDLE_TIMEOUT", "500ms"),
        ("AI_CONCURRENT_STREAMS", "100"),
    ])
    .await;
    let user = app.user().await;
    app.start_worker().await;
    let mut rows = 0;
    for (fault, code, outcome, pieces) in [
        ("status:500", "engine_error", "engine_error", false),
        ("status:401", "engine_error", "engine_error", false),
        ("html", "engine_bad_answer", "engine_error", false),
        ("hang-before-headers", "engine_timeout", "timeout", false),
        ("stall:3", "engine_timeout", "timeout", true),
        ("reset:5", "engine_connection_lost", "engine_error", true),
        ("half-chunk:5", "engine_connection_lost", "engine_error", true),
    ] {
        let path = start(&user, &format!("[[sim fault={fault}]]")).await;
        let events = read(&user, &path, None).await;
        let end = events.last().unwrap();
        assert_eq!((end.name.as_str(), end.json()["state"].as_str()), ("end", Some("failed")), "{fault}");
        assert_eq!(end.json()["error"]["code"], code, "{fault}: {}", end.data);
        assert_eq!(events.iter().any(|event| event.name.is_empty()), pieces, "{fault}");
        let run = user.get(&path).await.expect(200).json();
        assert_eq!(run["error"], end.json()["error"], "{fault}");
        let all = usage(&app).await;
        rows += 1;
        assert_eq!(all.len(), rows, "{fault}: once");
        let last = all.last().unwrap();
        assert_eq!(last.0, outcome, "{fault}");
        assert_eq!(last.2 > 0, pieces, "{fault}: {last:?}");
    }
    assert!(open(&user, &start(&user, "[[sim tokens=2]]").await, None).await.status() == 200);
}

/// The store of events goes away for good in the middle: the database says what became of the run, and who watches is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_events_are_lost_fails_and_its_viewers_are_told() {
    let direct = test_redis().await;
    let (redis, url) = FaultProxy::in_front_of(&direct.url).await;
    let app = TestApp::with(&[("REDIS_URL", &url), ("STREAM_HEARTBEAT", "1s")]).await;
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=1000 token-interval-ms=100]]").await;
    app.start_worker().await;
    let mut viewer = open(&user, &path, None).await;
    some(&mut viewer, 3).await;
    redis.set(Mode::Refuse);
    let events = rest(viewer).await;
    assert_eq!(names(&events).last(), Some(&"end"));
    let end = events.last().unwrap().json();
    assert_eq!((end["state"].as_str(), end["error"]["code"].as_str()), (Some("failed"), Some("events_lost")));
    assert_eq!(state(&user, &path).await, "failed");
    app.engine.wait_for(S(5), |stats| stats.requests_open == 0).await;
    assert_eq!(usage(&app).await.len(), 1);
    // Nobody could read a new one.
    user.post("/v1/runs", prompt("x")).await.problem(503, "redis_unavailable");
    user.post(&format!("{path}/ticket"), serde_json::Value::Null).await.problem(503, "redis_unavailable");
    let by_ticket = app.anonymous().get(&format!("{path}/events?ticket=tk_{}", "A".repeat(43))).await;
    by_ticket.problem(503, "redis_unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_without_redis_costs_no_event() {
    let direct = test_redis().await;
    let (redis, url) = FaultProxy::in_front_of(&direct.url).await;
    let app = TestApp::with(&[("REDIS_URL", &url)]).await;
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=60 token-interval-ms=50]]").await;
    app.start_worker().await;
    let mut viewer = open(&user, &path, None).await;
    let mut events = some(&mut viewer, 3).await;
    redis.set(Mode::Refuse);
    tokio::time::sleep(S(1)).await;
    redis.set(Mode::Pass);
    events.extend(rest(viewer).await);
    assert_eq!(names(&events), ["queued", "started", "", "end"]);
    assert_eq!(events.last().unwrap().json()["state"], "completed", "{events:?}");
    assert_eq!(
        super::text(&events),
        super::text(&read(&user, &path, None).await),
        "nothing twice, nothing missing"
    );
}

/// Redis has lost the stream while the run is made: it goes on, and who comes later is told that something is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_stream_is_lost_in_the_middle_goes_on_and_says_what_is_missing() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=40 token-interval-ms=50]]").await;
    app.start_worker().await;
    let mut viewer = open(&user, &path, None).await;
    let before = some(&mut viewer, 5).await;
    let key = format!("{}v1:run:{}:events", app.redis.prefix, path.rsplit('/').next().unwrap());
    let mut redis = app.redis.connection().await;
    assert_eq!(cmd("DEL").arg(&key).query_async::<u64>(&mut redis).await.unwrap(), 1, "{key}");
    let late = read(&user, &path, None).await;
    assert_eq!(names(&late), ["trimmed", "", "end"]);
    assert_eq!(late.last().unwrap().json()["state"], "completed");
    // Who was there has seen all of it.
    let all = [before, rest(viewer).await].concat();
    assert_eq!(names(&all), ["queued", "started", "", "end"]);
    let pieces = |events: &[super::Event]| events.iter().filter(|event| event.name.is_empty()).count();
    assert!(pieces(&late) < pieces(&all), "{} of {}", pieces(&late), pieces(&all));
    assert_eq!(usage(&app).await.len(), 1);
}

/// Postgres is away when the run ends: for a moment, and for longer than the end is tried.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_while_postgres_is_away_ends_once() {
    let database = TestDatabase::create().await;
    let (postgres, url) = FaultProxy::in_front_of(database.url()).await;
    let app = TestApp::with(&[
        ("DATABASE_URL", &url),
        ("DATABASE_ACQUIRE_TIMEOUT", "1s"),
        ("WORKER_POLL_INTERVAL", "200ms"),
    ])
    .await;
    let user = app.user().await;
    app.start_worker().await;
    for (away, expected) in [
        (S(1), ["queued", "started", "", "end"].as_slice()),
        (S(25), &["queued", "started", "", "restarted", "", "end"]),
    ] {
        let path = start(&user, "[[sim tokens=10 token-interval-ms=50]]").await;
        let mut viewer = open(&user, &path, None).await;
        let before = some(&mut viewer, 2).await;
        postgres.set(Mode::Refuse);
        app.engine.wait_for(S(10), |stats| stats.requests_open == 0).await;
        tokio::time::sleep(away).await;
        postgres.set(Mode::Pass);
        let all = [before, rest(viewer).await].concat();
        assert_eq!(names(&all), expected, "{away:?}");
        assert_eq!(all.last().unwrap().json()["state"], "completed");
    }
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select outcome, completion_tokens from usage_event order by id")
            .fetch_all(database.pool())
            .await
            .unwrap();
    assert_eq!(rows, [("ok".to_owned(), 10), ("ok".to_owned(), 10)], "each once");
}

/// Its workers died until its attempts were used up, or an operator cancelled its job before anybody had it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_job_is_gone_is_ended_by_whoever_looks() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "1s")]).await;
    let user = app.user().await;
    let (lost, cancelled) = (start(&user, "x").await, start(&user, "x").await);
    let viewer = open(&user, &lost, None).await;
    let mut c = app.database.pool().acquire().await.unwrap();
    let id: i64 =
        sqlx::query_scalar("select job_id from run order by id desc").fetch_one(&mut *c).await.unwrap();
    jobs::cancel(&mut c, id).await.unwrap();
    sqlx::query("delete from job where kind = 'run'").execute(&mut *c).await.unwrap();
    let events = rest(viewer).await;
    assert_eq!(names(&events), ["queued", "end"]);
    assert_eq!(events[1].json()["error"]["code"], "worker_lost");
    assert_eq!(state(&user, &cancelled).await, "stopped");
    assert_eq!(usage(&app).await, [], "neither was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_runs_are_deleted_and_lost_ones_ended_by_the_clean_up() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let (old, lost) = (start(&user, "x").await, start(&user, "x").await);
    user.delete(&old).await.expect(200);
    let pool = app.database.pool();
    sqlx::query("update run set ended_at = now() - interval '31 days' where ended_at is not null")
        .execute(pool)
        .await
        .unwrap();
    sqlx::query("delete from job where kind = 'run'").execute(pool).await.unwrap();
    let mut c = pool.acquire().await.unwrap();
    jobs::enqueue_raw(&mut c, "cleanup", serde_json::json!({}), jobs::EnqueueOptions::default())
        .await
        .unwrap();
    app.run_pending_jobs().await;
    user.get(&old).await.problem(404, "not_found");
    let ended: String = sqlx::query_scalar("select state from run").fetch_one(pool).await.unwrap();
    assert_eq!(ended, "failed");
    eventually("it says so", S(5), async || state(&user, &lost).await == "failed").await;
    until(&user, &lost, "failed").await;
}
