//! Releases: the real binary on a schema that is older or newer than it is, and its end under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use db::{Database, Migrations};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, migrate::Migrator};
use test_support::TestDatabase;

use crate::support::{
    Deployment, PASSWORD, Process, eventually, free_port, in_full, insert_user, mail_to, ready, token_in,
    within,
};

const S: fn(u64) -> Duration = Duration::from_secs;
const LIMITS: [(&str, &str); 4] = [
    ("RATE_LIMIT_GLOBAL", "1000000/1m"),
    ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
    ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
    ("AI_CONCURRENT_STREAMS", "1000"),
];

/// Somebody new, logged in; the access token.
async fn account(pool: &PgPool, port: u16) -> String {
    let email = format!("{}@example.com", uuid::Uuid::new_v4());
    insert_user(pool, &email, "user").await;
    log_in(port, &email).await
}

async fn log_in(port: u16, email: &str) -> String {
    let request = reqwest::Client::new().post(format!("http://127.0.0.1:{port}/v1/auth/login"));
    let answer = request.json(&json!({ "email": email, "password": PASSWORD })).send().await.unwrap();
    let tokens: Value = answer.json().await.unwrap();
    tokens["access_token"].as_str().unwrap().to_owned()
}

/// As people do: a mail by the worker, its token, a password.
async fn register(pool: &PgPool, port: u16) -> String {
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let email = format!("{}@example.com", uuid::Uuid::new_v4());
    let asked = client.post(url("/v1/auth/sign-up")).json(&json!({ "email": email })).send().await.unwrap();
    assert_eq!(asked.status(), 202);
    eventually("the mail", S(20), async || mail_to(pool, &email).await.is_some()).await;
    let token = token_in(&mail_to(pool, &email).await.unwrap());
    let body = json!({ "email": email, "password": PASSWORD, "invitation_token": token });
    let made = client.post(url("/v1/auth/register")).json(&body).send().await.unwrap();
    assert_eq!(made.status(), 201);
    log_in(port, &email).await
}

/// What the previous release's users do all day.
async fn everything_works(pool: &PgPool, port: u16) {
    let token = register(pool, port).await;
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let me = client.get(url("/v1/me")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(me.status(), 200);
    let key = json!({ "name": "one", "scopes": ["ai"] });
    let made = client.post(url("/v1/api-keys")).bearer_auth(&token).json(&key).send().await.unwrap();
    assert_eq!(made.status(), 201);
    let chat = json!({ "model": "sim-small", "messages": [{ "role": "user", "content": "hello" }] });
    let answer =
        client.post(url("/v1/chat/completions")).bearer_auth(&token).json(&chat).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let job = json!({ "kind": "echo", "args": { "message": "hello" } });
    let started = client.post(url("/v1/jobs")).bearer_auth(&token).json(&job).send().await.unwrap();
    assert_eq!(started.status(), 202);
    let job: Value = started.json().await.unwrap();
    let id = job["id"].to_string().replace('"', "");
    eventually("the job is done", S(20), async || {
        let shown = client.get(url(&format!("/v1/jobs/{id}"))).bearer_auth(&token).send().await.unwrap();
        shown.json::<Value>().await.unwrap()["state"] == "completed"
    })
    .await;
}

/// Case S3, one half. Expand and contract: what a next release may do to the schema (a column with a default or none, a table, an
/// index) must not disturb this one, and neither must the record of a migration that it does not know.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_release_serves_on_a_newer_schema() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let _running = deployment.start("all", port, &LIMITS);
    ready(port).await;
    let next = "
        alter table users add column nickname text, add column score int not null default 0;
        alter table session add column device_id uuid;
        alter table api_key add column note text;
        alter table job add column shard int not null default 0;
        alter table usage_event add column region text;
        create table next_release (id bigint primary key, user_id uuid references users (id) on delete cascade);
        create index next_release_user_id on next_release (user_id);
        insert into _sqlx_migrations (version, description, installed_on, success, checksum, execution_time)
            values (9999, 'the next release', now(), true, 'x', 1);";
    sqlx::raw_sql(AssertSqlSafe(next)).execute(deployment.database.pool()).await.unwrap();
    // The one that ran while the schema changed, and one that starts on it, as after a rollback.
    everything_works(deployment.database.pool(), port).await;
    let again = free_port();
    let mut rolled_back = deployment.start("all", again, &LIMITS);
    ready(again).await;
    everything_works(deployment.database.pool(), again).await;
    assert!(rolled_back.is_running());
}

/// Case S3, the other half: a release that comes before its migration is alive, says that it is not ready and why, and is ready
/// without a restart once somebody has migrated.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_release_waits_for_its_schema() {
    let deployment = Deployment::new().await;
    let database = TestDatabase::empty().await;
    let port = free_port();
    let mut vars = vec![("DATABASE_URL", database.url())];
    vars.extend(LIMITS);
    let mut waiting = deployment.start("all", port, &vars);
    let get = async |path: &str| reqwest::get(format!("http://127.0.0.1:{port}{path}")).await;
    eventually("it is alive", S(20), async || get("/livez").await.is_ok_and(|answer| answer.status() == 200))
        .await;
    eventually("it says what it waits for", S(20), async || {
        let (Ok(ready), Ok(report)) = (get("/readyz").await, get("/health").await) else { return false };
        ready.status() == 503 && report.text().await.unwrap().contains("run `ballast migrate up`")
    })
    .await;
    assert!(waiting.is_running());
    let migrated = tokio::task::spawn_blocking({
        let url = database.url().to_owned();
        move || Process::command(&["migrate", "up"], &[("DATABASE_URL", &url)]).output().unwrap()
    });
    let migrated = migrated.await.unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    ready(port).await;
    everything_works(database.pool(), port).await;
}

/// What the next release brings, as files: its number, `up`, and the text.
async fn next_release(files: &[(u32, &str)]) -> Migrator {
    let dir = std::env::temp_dir().join(format!("ballast-next-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&dir).unwrap();
    for (number, sql) in files {
        std::fs::write(dir.join(format!("{number}_next.up.sql")), sql).unwrap();
    }
    let migrator = Migrator::new(dir.as_path()).await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    migrator
}

/// Case D4. An index that is built concurrently waits for every older snapshot; a migrator that waits for its turn must not
/// hold one.
#[tokio::test(flavor = "multi_thread")]
async fn of_three_migrators_at_once_one_builds_an_index_concurrently_and_the_others_find_nothing_to_do() {
    let database = TestDatabase::create().await;
    let next = next_release(&[
        (9001, "create table next (id bigint primary key, kind text); select pg_sleep(1);"),
        (9002, "-- no-transaction\ncreate index concurrently next_kind on next (kind);"),
        (9003, "alter table next add column note text;"),
    ])
    .await;
    let migrate = || {
        let next = Migrator { migrations: next.migrations.clone(), ..Migrator::DEFAULT };
        let migrations = Migrations::new(&Database::from_pool(database.pool().clone())).with(next);
        async move { migrations.up(S(60)).await.unwrap() }
    };
    let (one, two, three) = tokio::join!(migrate(), migrate(), migrate());
    let mut applied = [one, two, three];
    applied.sort_unstable();
    assert_eq!(applied, [0, 0, 3]);
    let valid: bool =
        sqlx::query_scalar("select indisvalid from pg_index where indexrelid = 'next_kind'::regclass")
            .fetch_one(database.pool())
            .await
            .unwrap();
    assert!(valid);
}

/// Case D4, the other half.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_migration_says_what_is_wrong_within_a_minute_and_the_release_before_it_serves_on() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let mut running = deployment.start("all", port, &LIMITS);
    ready(port).await;
    account(deployment.database.pool(), port).await;
    // As a backup does it.
    let mut other = deployment.database.pool().begin().await.unwrap();
    sqlx::query("select count(*) from job_done").execute(&mut *other).await.unwrap();
    for (number, sql, says) in [
        (9001, "create tabel next (id bigint);", "syntax error"),
        (9002, "create table next (id bigint); alter table nothing add column a int;", "does not exist"),
        (9003, "alter table users add column plan text not null;", "contains null values"),
        // Behind the other session's lock, and everybody else behind this one.
        (9004, "alter table job_done add column region text;", "lock timeout"),
    ] {
        let migrations = Migrations::new(&Database::from_pool(deployment.database.pool().clone()))
            .with(next_release(&[(number, sql)]).await);
        let begun = Instant::now();
        let error = migrations.up(S(60)).await.unwrap_err();
        assert!(begun.elapsed() < S(60), "{sql}: {:?}", begun.elapsed());
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains(says) && error.contains(&number.to_string()), "{sql}: {error}");
    }
    other.rollback().await.unwrap();
    everything_works(deployment.database.pool(), port).await;
    assert_eq!(reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.unwrap().status(), 200);
    assert!(running.is_running(), "{}", running.output());
    let left: i64 =
        sqlx::query_scalar("select count(*) from _sqlx_migrations where version > 9000 or not success")
            .fetch_one(deployment.database.pool())
            .await
            .unwrap();
    assert_eq!(left, 0, "nothing of it is left");
}

#[derive(Default)]
struct Tally {
    sent: AtomicUsize,
    done: AtomicUsize,
    streams: AtomicUsize,
    drained: AtomicUsize,
}

/// Case S1: SIGTERM while requests come at a steady rate, streams run and kept-alive connections idle. What was accepted is
/// answered; streams get their own end or an event that says why; the exit code is 0 in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_termination_under_load_fails_no_accepted_request_and_cuts_no_stream() {
    for round in 0..if in_full() { 20 } else { 2 } {
        let deployment = Deployment::new().await;
        let port = free_port();
        // A busy machine is no fault of the end.
        let mut vars =
            vec![("SHUTDOWN_DELAY", "1s"), ("SHUTDOWN_BUDGET", "10s"), ("DATABASE_ACQUIRE_TIMEOUT", "20s")];
        vars.extend(LIMITS);
        let mut process = deployment.start("api", port, &vars);
        ready(port).await;
        let token = account(deployment.database.pool(), port).await;
        let (tally, terminated) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
        let mut tasks = Vec::new();
        for number in 0..10 {
            tasks.push(tokio::spawn(requests(port, token.clone(), tally.clone(), terminated.clone())));
            for kind in ["[[sim tokens=20 token-interval-ms=50]]", "[[sim tokens=2000 token-interval-ms=50]]"]
            {
                let content = format!("{kind} {number}");
                tasks.push(tokio::spawn(stream(
                    port,
                    token.clone(),
                    content,
                    tally.clone(),
                    terminated.clone(),
                )));
            }
        }
        // Idle, and kept.
        let idle = reqwest::Client::new();
        assert_eq!(idle.get(format!("http://127.0.0.1:{port}/livez")).send().await.unwrap().status(), 200);
        tokio::time::sleep(S(2)).await;
        process.signal(Signal::SIGTERM);
        within("readiness goes first, while it still listens", S(2), async || {
            reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.is_ok_and(|r| r.status() == 503)
        })
        .await;
        terminated.store(true, Ordering::Relaxed);
        let (status, took) = process.wait(S(20)).await;
        for task in tasks {
            task.await.unwrap_or_else(|error| panic!("round {round}: {error}\n{}", process.output()));
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        assert_eq!(status.code(), Some(0), "round {round}: {}", process.output());
        assert!(took < S(13), "round {round}: {took:?}");
        assert_eq!(count(&tally.sent), count(&tally.done), "round {round}");
        assert!(
            count(&tally.sent) > 50 && count(&tally.streams) > 0 && count(&tally.drained) > 0,
            "round {round}"
        );
    }
}

/// Requests on kept-alive connections until readiness is off, as a balancer sends them.
async fn requests(port: u16, token: String, tally: Arc<Tally>, terminated: Arc<AtomicBool>) {
    let client = reqwest::Client::new();
    while !terminated.load(Ordering::Relaxed) {
        tally.sent.fetch_add(1, Ordering::Relaxed);
        let answer =
            client.get(format!("http://127.0.0.1:{port}/v1/me")).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap();
        tally.done.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// Streams that come to their own end before the last call, and one that cannot.
async fn stream(port: u16, token: String, content: String, tally: Arc<Tally>, terminated: Arc<AtomicBool>) {
    let body =
        json!({ "model": "sim-small", "stream": true, "messages": [{ "role": "user", "content": content }] });
    let client = reqwest::Client::new();
    while !terminated.load(Ordering::Relaxed) {
        let request = client
            .post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
            .bearer_auth(&token)
            .json(&body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let text = answer.text().await.expect("a clean end");
        if text.contains("[DONE]") {
            tally.streams.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!(text.contains("server_shutdown") && terminated.load(Ordering::Relaxed), "{text}");
            tally.drained.fetch_add(1, Ordering::Relaxed);
        }
    }
}
