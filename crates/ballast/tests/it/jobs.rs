//! Jobs, through the API.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Persona, TestApp, eventually};

const S: fn(u64) -> Duration = Duration::from_secs;

fn echo(message: &str) -> Value {
    json!({ "kind": "echo", "args": { "message": message } })
}

#[tokio::test]
async fn a_job_is_accepted_run_and_shown_to_its_owner_only() {
    let app = TestApp::start().await;
    let (user, stranger) = (app.user().await, app.user().await);
    let accepted =
        user.post("/v1/jobs", json!({ "kind": "echo", "args": { "message": "hello" } })).await.expect(202);
    let path = accepted.header("location").to_owned();
    assert_eq!(user.get(&path).await.expect(200).json()["state"], "ready");
    assert!(app.run_pending_jobs().await >= 1);
    let job = user.get(&path).await.expect(200).json();
    assert_eq!(
        (job["state"].as_str(), job["result"]["message"].as_str()),
        (Some("completed"), Some("hello"))
    );
    stranger.get(&path).await.problem(404, "not_found");
    stranger.get(&format!("{path}/events")).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_and_its_errors_are_kept() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = json!({ "kind": "echo", "args": { "message": "x", "fail_times": 1 } });
    let path = user.post("/v1/jobs", body).await.expect(202).header("location").to_owned();
    app.run_pending_jobs().await;
    let job = user.get(&path).await.expect(200).json();
    assert!(job["state"] == "ready" || job["state"] == "completed", "{job}");
    assert_eq!(job["errors"].as_array().unwrap().len(), 1, "{job}");
}

/// Case H5.
#[tokio::test]
async fn what_users_may_not_start_is_refused_with_the_list_of_what_they_may() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for body in [
        json!({ "kind": "send_email", "args": { "to": "a@b.c", "subject": "x", "text": "x" } }),
        json!({ "kind": "nonsense" }),
    ] {
        let refused = user.post("/v1/jobs", body).await.problem(422, "invalid").json();
        assert!(refused["detail"].as_str().unwrap().contains("echo"), "{refused}");
    }
    for args in [
        json!({}),
        json!({ "message": 1 }),
        json!({ "message": "x", "sleep_ms": -1 }),
        json!({ "message": "x", "more": 1 }),
    ] {
        user.post("/v1/jobs", json!({ "kind": "echo", "args": args })).await.problem(422, "invalid");
    }
    let deep = format!(r#"{{"kind":"echo","args":{}"#, "[".repeat(10_000));
    let request =
        user.request(reqwest::Method::POST, "/v1/jobs").header("content-type", "application/json").body(deep);
    user.send(request).await.problem(400, "malformed_json");
    let large = json!({ "kind": "echo", "args": { "message": "x".repeat(300 * 1024) } });
    user.post("/v1/jobs", large).await.problem(413, "body_too_large");
    for id in ["0", "-1", "99999999999999999999999", "abc", "1e3"] {
        user.get(&format!("/v1/jobs/{id}")).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn a_jobs_events_tell_its_changes_and_end_with_it() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = json!({ "kind": "echo", "args": { "message": "x" } });
    let path = user.post("/v1/jobs", body).await.expect(202).header("location").to_owned();
    let response = user.request(reqwest::Method::GET, &format!("{path}/events")).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut stream = response.bytes_stream();
    let mut text = String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(text.contains("\"state\":\"ready\""), "{text}");
    app.run_pending_jobs().await;
    let rest = async {
        while let Some(chunk) = stream.next().await {
            text.push_str(&String::from_utf8_lossy(chunk.unwrap().as_ref()));
        }
    };
    tokio::time::timeout(S(30), rest).await.expect("the stream ends with the job");
    assert!(text.contains("\"state\":\"completed\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_a_running_job_is_seen_in_its_events_and_when_one_asks() {
    let app = TestApp::start().await;
    let user = app.user().await;
    app.start_worker().await;
    let body = json!({ "kind": "echo", "args": { "message": "x", "sleep_ms": 2_000 } });
    let path = user.post("/v1/jobs", body).await.expect(202).header("location").to_owned();
    let response = user.request(Method::GET, &format!("{path}/events")).send().await.unwrap();
    let asked = async {
        let mut job = json!(null);
        eventually("it shows how far it is", S(30), async || {
            job = user.get(&path).await.expect(200).json();
            job["progress"]["done"].as_u64().is_some_and(|done| done > 0)
        })
        .await;
        job
    };
    let (text, job) = tokio::join!(response.text(), asked);
    assert_eq!(job["progress"]["total"], 2_000, "{job}");
    let events: Vec<Value> = text
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok())
        .collect();
    let seen: Vec<u64> = events.iter().filter_map(|job| job["progress"]["done"].as_u64()).collect();
    let under_way: Vec<_> = events.iter().filter(|job| job["state"] == "running").collect();
    assert!(under_way.iter().any(|job| job["progress"]["note"] == "sleeping"), "{events:?}");
    assert!(seen.is_sorted() && seen.iter().any(|done| (1..2_000).contains(done)), "{seen:?}");
    let last = events.last().unwrap();
    assert_eq!(
        (last["state"].as_str(), &last["progress"]["done"]),
        (Some("completed"), &json!(2_000)),
        "{last}"
    );
}

/// Reads from a stream until the text is there.
async fn until<B: AsRef<[u8]>>(
    stream: &mut (impl futures_util::Stream<Item = reqwest::Result<B>> + Unpin),
    wanted: &str,
) {
    let mut text = String::new();
    let read = async {
        while !text.contains(wanted) {
            let Some(chunk) = stream.next().await else { panic!("ended without {wanted}: {text}") };
            text.push_str(&String::from_utf8_lossy(chunk.unwrap().as_ref()));
        }
    };
    tokio::time::timeout(S(30), read).await.unwrap_or_else(|_| panic!("no {wanted}"));
}

#[tokio::test]
async fn streams_of_jobs_hold_a_permit_that_ends_with_them() {
    let app = TestApp::with(&[("AI_CONCURRENT_STREAMS", "2"), ("STREAM_HEARTBEAT", "50ms")]).await;
    let user = app.user().await;
    let path = user.post("/v1/jobs", echo("x")).await.expect(202).header("location").to_owned();
    let open = async || {
        let response = user.request(Method::GET, &format!("{path}/events")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.bytes_stream()
    };
    let (mut one, _two) = (open().await, open().await);
    until(&mut one, ": ping").await;
    let refused = user.get(&format!("{path}/events")).await.problem(429, "rate_limited");
    assert!(refused.json()["detail"].as_str().unwrap().contains("concurrent-streams"));
    let other = app.user().await;
    other.get(&format!("{path}/events")).await.problem(404, "not_found");
    drop(one);
    eventually("the permit is back", S(5), async || {
        user.request(Method::GET, &format!("{path}/events")).send().await.unwrap().status() == 200
    })
    .await;
}

#[tokio::test]
async fn a_stream_of_a_job_ends_with_the_session_or_the_key_that_opened_it() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "50ms")]).await;
    let user = app.user().await;
    let path = user.post("/v1/jobs", echo("x")).await.expect(202).header("location").to_owned();
    let key = app.api_key(&user, &["jobs"]).await;
    let mut by_session =
        user.request(Method::GET, &format!("{path}/events")).send().await.unwrap().bytes_stream();
    let mut by_key = key.request(Method::GET, &format!("{path}/events")).send().await.unwrap().bytes_stream();
    until(&mut by_session, ": ping").await;
    until(&mut by_key, ": ping").await;
    let id = user.get("/v1/api-keys").await.expect(200).json()["data"][0]["id"].as_str().unwrap().to_owned();
    user.delete(&format!("/v1/api-keys/{id}")).await.expect(204);
    until(&mut by_key, "event: error").await;
    assert!(by_key.next().await.is_none_or(|rest| rest.is_ok()), "it ends");
    app.anonymous().post("/v1/auth/logout", json!({ "refresh_token": user.refresh_token })).await.expect(204);
    until(&mut by_session, "revoked").await;
}

#[tokio::test]
async fn a_request_that_is_sent_again_with_its_idempotency_key_starts_nothing() {
    let app = TestApp::start().await;
    let (user, other) = (app.user().await, app.user().await);
    let post = async |who: &Persona, key: &str, body: Value| {
        who.send(who.request(Method::POST, "/v1/jobs").header("idempotency-key", key).json(&body)).await
    };
    let first = post(&user, "a-1", echo("x")).await.expect(202);
    assert_eq!(first.header("idempotent-replayed"), "");
    let again = post(&user, "a-1", echo("x")).await.expect(202);
    assert_eq!((again.json(), again.header("idempotent-replayed")), (first.json(), "true"));
    assert_eq!(again.header("location"), first.header("location"));
    app.run_pending_jobs().await;
    let later = post(&user, "a-1", echo("x")).await.expect(202);
    assert_eq!(later.json(), first.json(), "also when the job is done");
    post(&user, "a-1", echo("y")).await.problem(422, "idempotency_key_reused");
    assert_ne!(post(&user, "a-2", echo("x")).await.expect(202).json(), first.json());
    assert_ne!(
        post(&other, "a-1", echo("x")).await.expect(202).json(),
        first.json(),
        "keys are a user's own"
    );
    post(&user, "", echo("x")).await.problem(400, "invalid_idempotency_key");
    post(&user, &"x".repeat(256), echo("x")).await.problem(400, "invalid_idempotency_key");
    let twenty = join_all((0..20).map(|_| post(&user, "race", echo("x")))).await;
    let ids: HashSet<String> = twenty.into_iter().map(|a| a.expect(202).text).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

/// Case H12.
#[tokio::test]
async fn a_user_cancels_a_job_of_ones_own_and_nobody_elses() {
    let app = TestApp::start().await;
    let (user, stranger) = (app.user().await, app.user().await);
    let path = user.post("/v1/jobs", echo("x")).await.expect(202).header("location").to_owned();
    stranger.post(&format!("{path}/cancel"), json!({})).await.problem(404, "not_found");
    let cancelled = user.post(&format!("{path}/cancel"), json!({})).await.expect(200).json();
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    user.post(&format!("{path}/cancel"), json!({})).await.problem(409, "not_cancellable");
    let key = app.api_key(&user, &["ai"]).await;
    key.post(&format!("{path}/cancel"), json!({})).await.problem(403, "missing_scope");
}
