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
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Deployment, PASSWORD, Process, eventually, free_port, in_full, insert_user, mail_to, ready, token_in,
    within,
};

const S: fn(u64) -> Duration = Duration::from_secs;
/// Of case S1: one half ends by itself, the other cannot.
const STREAMS: usize = 50;
/// Of case S1: 25 requests a second each, 250 together where the machine has time for them.
const REQUESTERS: usize = 10;
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

/// And the one that matters in a deploy: the schema is there, of the release before.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_release_on_the_schema_of_the_one_before_it_waits_for_one_migration() {
    let deployment = Deployment::new().await;
    let database = TestDatabase::empty().await;
    let migrate = async |arguments: &'static [&'static str]| {
        let url = database.url().to_owned();
        let run = move || Process::command(arguments, &[("DATABASE_URL", &url)]).output().unwrap();
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    migrate(&["migrate", "up"]).await;
    let said = migrate(&["migrate", "revert"]).await;
    assert!(said.contains("took back"), "{said}");
    let port = free_port();
    let mut vars = vec![("DATABASE_URL", database.url())];
    vars.extend(LIMITS);
    let mut waiting = deployment.start("all", port, &vars);
    let get = async |path: &str| reqwest::get(format!("http://127.0.0.1:{port}{path}")).await;
    eventually("it says which schema it found and what to do", S(20), async || {
        let (Ok(ready), Ok(report)) = (get("/readyz").await, get("/health").await) else { return false };
        let report = report.text().await.unwrap();
        ready.status() == 503
            && report.contains("is at version")
            && report.contains("run `ballast migrate up`")
    })
    .await;
    let said = migrate(&["migrate", "up"]).await;
    assert!(said.contains("applied 1 migration"), "{said}");
    ready(port).await;
    everything_works(database.pool(), port).await;
    assert!(waiting.is_running(), "without a restart");
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
    let token = account(deployment.database.pool(), port).await;
    // As a backup does it.
    let mut other = deployment.database.pool().begin().await.unwrap();
    sqlx::query("select count(*) from job_done").execute(&mut *other).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let users = tokio::spawn(one_user(port, token, over.clone()));
    let fails = async |number: u32, sql: &str, says: &str| {
        let migrations = Migrations::new(&Database::from_pool(deployment.database.pool().clone()))
            .with(next_release(&[(number, sql)]).await);
        let begun = Instant::now();
        let error = migrations.up(S(60)).await.unwrap_err();
        assert!(begun.elapsed() < S(60), "{sql}: {:?}", begun.elapsed());
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains(says) && error.contains(&number.to_string()), "{sql}: {error}");
    };
    fails(9001, "create tabel next (id bigint);", "syntax error").await;
    fails(9002, "create table next (id bigint); alter table nothing add column a int;", "does not exist")
        .await;
    fails(9003, "alter table users add column plan text not null;", "contains null values").await;
    // Behind the other session's lock, and everybody else behind this one.
    fails(9004, "alter table job_done add column region text;", "lock timeout").await;
    sqlx::query("select count(*) from users").execute(&mut *other).await.unwrap();
    fails(9005, "alter table users add column region text;", "lock timeout").await;
    over.store(true, Ordering::Relaxed);
    let answers = users.await.unwrap();
    assert!(answers > 20, "{answers} answers");
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

/// Somebody who asks and starts jobs without a pause for as long as the migrations are tried; how many answers there were, none
/// of them a failure.
async fn one_user(port: u16, token: String, over: Arc<AtomicBool>) -> usize {
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let job = json!({ "kind": "echo", "args": { "message": "hello" } });
    let mut answers = 0;
    while !over.load(Ordering::Relaxed) {
        for request in [client.get(url("/v1/me")), client.post(url("/v1/jobs")).json(&job)] {
            let begun = Instant::now();
            let answer = request.bearer_auth(&token).send().await.unwrap();
            assert!(answer.status().is_success(), "{} after {:?}", answer.status(), begun.elapsed());
            answers += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    answers
}

#[derive(Default)]
struct Tally {
    sent: AtomicUsize,
    done: AtomicUsize,
    /// Of those, after the signal.
    late: AtomicUsize,
    streams: AtomicUsize,
    drained: AtomicUsize,
}

/// How far the end is.
#[derive(Default)]
struct Phase {
    /// SIGTERM was sent.
    terminated: AtomicBool,
    /// The listener is about to close: nothing new is sent.
    closing: AtomicBool,
}

/// Case S1: SIGTERM while requests come at a steady rate, streams run and kept-alive connections idle. What was accepted is
/// answered, while readiness is off and the listener still open, too; streams get their own end or an event that says why; idle
/// connections are closed and not cut; the exit code is 0 in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_termination_under_load_fails_no_accepted_request_and_cuts_no_stream() {
    for round in 0..if in_full() { 20 } else { 2 } {
        let deployment = Deployment::new().await;
        let port = free_port();
        // A busy machine is no fault of the end.
        let mut vars =
            vec![("SHUTDOWN_DELAY", "3s"), ("SHUTDOWN_BUDGET", "12s"), ("DATABASE_ACQUIRE_TIMEOUT", "20s")];
        vars.extend(LIMITS);
        let mut process = deployment.start("api", port, &vars);
        ready(port).await;
        let token = account(deployment.database.pool(), port).await;
        let (tally, phase) = (Arc::new(Tally::default()), Arc::new(Phase::default()));
        let mut tasks = Vec::new();
        for _ in 0..REQUESTERS {
            tasks.push(tokio::spawn(requests(port, token.clone(), tally.clone(), phase.clone())));
        }
        for number in 0..STREAMS {
            let tokens = if number % 2 == 0 { 20 } else { 2_000 };
            let content = format!("[[sim tokens={tokens} token-interval-ms=50]] {number}");
            tasks.push(tokio::spawn(stream(port, token.clone(), content, tally.clone(), phase.clone())));
        }
        let mut idle = idle_connection(port).await;
        let idle = tokio::spawn(async move {
            let end = idle.read_to_end(&mut Vec::new()).await;
            (end, Instant::now())
        });
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        // Until all of them have their connection.
        tokio::time::sleep(S(1)).await;
        let (begun, before) = (Instant::now(), count(&tally.done));
        tokio::time::sleep(S(2)).await;
        let rate = (count(&tally.done) - before) as f64 / begun.elapsed().as_secs_f64();
        phase.terminated.store(true, Ordering::Relaxed);
        process.signal(Signal::SIGTERM);
        let signalled = Instant::now();
        within("readiness goes first, while it still listens", S(2), async || {
            reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.is_ok_and(|r| r.status() == 503)
        })
        .await;
        // Balancers need a moment to notice; until then requests come, and are answered.
        tokio::time::sleep(S(1).saturating_sub(signalled.elapsed())).await;
        phase.closing.store(true, Ordering::Relaxed);
        let (status, took) = process.wait(S(20)).await;
        let ended = Instant::now();
        for task in tasks {
            task.await.unwrap_or_else(|error| panic!("round {round}: {error}\n{}", process.output()));
        }
        assert_eq!(status.code(), Some(0), "round {round}: {}", process.output());
        assert!(took < S(15), "round {round}: {took:?}");
        assert_eq!(count(&tally.sent), count(&tally.done), "round {round}");
        let (late, streams, drained) = (count(&tally.late), count(&tally.streams), count(&tally.drained));
        println!(
            "round {round}: {rate:.0} requests/s, {late} after the signal, {streams} streams ended, {drained} drained"
        );
        assert!(late > 0 && streams > 0 && drained >= STREAMS / 2, "round {round}");
        assert!(!in_full() || rate > 180.0, "round {round}: {rate}");
        let (end, closed) = idle.await.unwrap();
        assert!(end.is_ok(), "round {round}: an idle connection was cut: {end:?}");
        // By the drain and not by the end of the process, which a busy machine cannot tell apart.
        assert!(
            !in_full() || closed + S(1) < ended,
            "round {round}: closed {:?} before the end",
            ended - closed
        );
    }
}

/// One that has asked once, is kept alive, and says nothing.
async fn idle_connection(port: u16) -> TcpStream {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    connection.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let read = connection.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    connection
}

/// Requests on kept-alive connections, as a balancer sends them that has not heard of the end yet.
async fn requests(port: u16, token: String, tally: Arc<Tally>, phase: Arc<Phase>) {
    let client = reqwest::Client::new();
    let mut next = tokio::time::interval(Duration::from_millis(40));
    while !phase.closing.load(Ordering::Relaxed) {
        let late = phase.terminated.load(Ordering::Relaxed);
        tally.sent.fetch_add(1, Ordering::Relaxed);
        let answer =
            client.get(format!("http://127.0.0.1:{port}/v1/me")).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap();
        tally.done.fetch_add(1, Ordering::Relaxed);
        tally.late.fetch_add(usize::from(late), Ordering::Relaxed);
        next.tick().await;
    }
}

/// Streams that come to their own end before the last call, and those that cannot.
async fn stream(port: u16, token: String, content: String, tally: Arc<Tally>, phase: Arc<Phase>) {
    let body =
        json!({ "model": "sim-small", "stream": true, "messages": [{ "role": "user", "content": content }] });
    let client = reqwest::Client::new();
    while !phase.closing.load(Ordering::Relaxed) {
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
            assert!(text.contains("server_shutdown") && phase.terminated.load(Ordering::Relaxed), "{text}");
            tally.drained.fetch_add(1, Ordering::Relaxed);
        }
    }
}
