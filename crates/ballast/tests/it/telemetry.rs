//! What leaves the process: log lines, error reports, traces. The real binary, with a collector of ours in the place of
//! Sentry and of an OTLP collector.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use test_support::{TestDatabase, test_redis};

use crate::support::{Collector, Process, TestApp, eventually, free_port, metric, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const CANARY: &str = "canary-5b1f-secret";

#[tokio::test(flavor = "multi_thread")]
async fn an_error_reaches_sentry_and_the_trace_its_collector_and_no_secret_reaches_anybody() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let collector = Collector::start().await;
    let address = &collector.address;
    let port = free_port();
    let (port_text, dsn, otlp) =
        (port.to_string(), format!("http://{CANARY}@{address}/1"), format!("http://{address}"));
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("ENGINE_API_KEY", CANARY),
        ("SENTRY_DSN", dsn.as_str()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.as_str()),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug,hyper=info,h2=info"),
    ];
    let mut api = Process::start(&["api"], &vars);
    let url = format!("http://127.0.0.1:{port}");
    eventually("readiness", S(20), async || {
        reqwest::get(format!("{url}/readyz")).await.is_ok_and(|r| r.status() == 200)
    })
    .await;

    // A fault of ours: the table is gone.
    sqlx::query("alter table users rename to gone").execute(database.pool()).await.unwrap();
    let client = reqwest::Client::builder().build().unwrap();
    let body = json!({ "email": "someone@example.com", "password": CANARY });
    let answer = client
        .post(format!("{url}/v1/auth/login?token={CANARY}"))
        .header("authorization", format!("Bearer {CANARY}"))
        .header("cookie", format!("session={CANARY}"))
        .header("user-agent", "evil\tagent")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 500);
    let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap();
    assert!(!text.contains("users") && text.contains(&request_id), "{text}");

    api.signal(Signal::SIGTERM);
    let (status, took) = api.wait(S(10)).await;
    assert!(status.success() && took < S(8), "{took:?} {}", api.output());

    let sentry = collector.text("/api/1/envelope");
    assert!(sentry.contains("request failed") && sentry.contains(&request_id), "{sentry}");
    let traces = collector.text("/v1/traces");
    assert!(traces.contains("/v1/auth/login"), "the span carries its route");
    let trace_id = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    assert!(
        collector.bytes("/v1/traces").windows(16).any(|w| w == trace_id),
        "and continues the caller's trace"
    );

    let output = api.output();
    for line in output.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string());
    }
    assert!(output.contains("relation \\\"users\\\" does not exist"), "the log has the cause: {output}");
    // Sentry's own public key is part of its protocol; nothing else may carry the canary.
    let sentry =
        sentry.replace(&format!("{CANARY}@"), "").replace(&format!("\"public_key\":\"{CANARY}\""), "");
    for (place, text) in
        [("the log", &output), ("the answer", &text), ("sentry", &sentry), ("the traces", &traces)]
    {
        assert!(!text.contains(CANARY), "{place} holds a secret: {text}");
        assert!(!text.contains("someone@example.com"), "{place} holds an address");
    }
    assert!(!output.contains('\u{1b}'), "the log holds a terminal escape");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentry_that_answers_nothing_delays_neither_requests_nor_the_end() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    // Accepts and never answers.
    let hole = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hole.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hole.accept().await {
            held.push(stream);
        }
    });
    let port = free_port();
    let (port_text, dsn) = (port.to_string(), format!("http://key@{address}/1"));
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("SENTRY_DSN", dsn.as_str()),
    ];
    let mut api = Process::start(&["api"], &vars);
    let url = format!("http://127.0.0.1:{port}");
    eventually("readiness", S(20), async || {
        reqwest::get(format!("{url}/readyz")).await.is_ok_and(|r| r.status() == 200)
    })
    .await;
    sqlx::query("alter table users rename to gone").execute(database.pool()).await.unwrap();
    let client = reqwest::Client::builder().build().unwrap();
    for _ in 0..20 {
        let started = std::time::Instant::now();
        let body = json!({ "email": "a@example.com", "password": "long enough" });
        assert_eq!(
            client.post(format!("{url}/v1/auth/login")).json(&body).send().await.unwrap().status(),
            500
        );
        assert!(started.elapsed() < S(1), "{:?}", started.elapsed());
    }
    api.signal(Signal::SIGTERM);
    let (status, took) = api.wait(S(10)).await;
    assert!(status.success() && took < S(5), "{took:?}");
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_counts_users_and_living_sessions() {
    let app = TestApp::start().await;
    let (user, left, disabled) = (app.user().await, app.user().await, app.user().await);
    app.log_in(&user.email).await;
    left.logout(&left.refresh_token).await.expect(204);
    let disable = async |c: &mut _| {
        let found = db::users::find_by_email(c, &disabled.email).await?.expect("it was made just now");
        db::users::disable(c, found.id).await
    };
    app.state.database.call::<_, db::Error>("test", disable).await.unwrap();

    let port = free_port();
    let port_text = port.to_string();
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", app.database.url()),
        ("REDIS_URL", app.redis.url.as_str()),
        ("REDIS_KEY_PREFIX", app.redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
    ];
    let _worker = Process::start(&["worker"], &vars);
    ready(port).await;
    let wanted = [
        ("users", r#"state="enabled""#, 2.0),
        ("users", r#"state="disabled""#, 1.0),
        ("sessions_active", "", 2.0),
        ("users_active", "", 1.0),
    ];
    eventually("the first count", S(20), async || metric(port, "users", "").await > 0.0).await;
    for (name, labels, value) in wanted {
        assert!((metric(port, name, labels).await - value).abs() < 0.5, "{name} {labels}");
    }
}
