//! Stopping a run, and what it holds of the limits.

use std::time::Instant;

use super::{S, names, open, prompt, read, rest, some, start, state, until, usage};
use crate::support::{TestApp, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_stopped_within_a_second_and_so_is_the_engines_request() {
    let app = TestApp::start().await;
    let other = app.replica();
    let (user, stranger) = (app.user().await, app.user().await);
    let path = start(&user, "[[sim tokens=1000 token-interval-ms=50]]").await;
    app.start_worker().await;
    let mut viewer = open(&user, &path, None).await;
    some(&mut viewer, 5).await;
    stranger.delete(&path).await.problem(404, "not_found");
    let stopped = Instant::now();
    user.at(&other).delete(&path).await.expect(200);
    app.engine.wait_for(S(5), |stats| stats.cancelled == 1).await;
    println!("the engine's request was cancelled after {:?}", stopped.elapsed());
    // The promise is a second; a loaded machine gets some more.
    assert!(stopped.elapsed() < S(3), "{:?}", stopped.elapsed());
    let end = rest(viewer).await.pop().unwrap();
    assert_eq!((end.name.as_str(), end.json()["state"].as_str()), ("end", Some("stopped")));
    let run = user.delete(&path).await.expect(200).json();
    assert_eq!(run["state"], "stopped", "asked twice, it does nothing");
    assert_eq!(run["usage"], end.json()["usage"]);
    let rows = usage(&app).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0].0.as_str(), rows[0].3), ("client_abort", true));
    assert!(rows[0].1 > 0 && (5..500).contains(&rows[0].2), "what came so far: {rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_is_stopped_at_once_and_costs_nothing() {
    let app = TestApp::start().await;
    let user = app.user().await;
    // The mail to a new user is a job too.
    app.run_pending_jobs().await;
    let path = start(&user, "Hello!").await;
    assert_eq!(user.delete(&path).await.expect(200).json()["state"], "stopped");
    let events = read(&user, &path, None).await;
    assert_eq!(names(&events), ["queued", "end"]);
    assert_eq!(app.run_pending_jobs().await, 0, "nothing is left to do");
    assert_eq!(usage(&app).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_count_as_streams_and_give_their_permit_back_when_they_end() {
    let app = TestApp::with(&[("AI_CONCURRENT_STREAMS", "1")]).await;
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=1000 token-interval-ms=50]]").await;
    app.start_worker().await;
    until(&user, &path, "running").await;
    user.post("/v1/runs", prompt("x")).await.problem(429, "rate_limited");
    let mut chat = prompt("x");
    chat["stream"] = true.into();
    user.post("/v1/chat/completions", chat.clone()).await.expect(429);
    user.delete(&path).await.expect(200);
    until(&user, &path, "stopped").await;
    eventually("the permit is back", S(10), async || {
        user.post("/v1/chat/completions", chat.clone()).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_settles_the_tokens_that_it_reserved() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_TOKENS", "3000/1d")]).await;
    let user = app.user().await;
    app.start_worker().await;
    // Each reserves more than a thousand and uses a few.
    for _ in 0..8 {
        let path = start(&user, "[[sim tokens=5]]").await;
        assert_eq!(names(&read(&user, &path, None).await).last(), Some(&"end"));
        eventually("it is settled", S(10), async || {
            let left = user.post("/v1/embeddings", serde_json::json!({ "model": "m", "input": "x" })).await;
            left.header("x-ratelimit-remaining-tokens").parse::<u64>().unwrap() > 1_500
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_before_anything_is_made() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for (body, status, code) in [
        (serde_json::json!({}), 422, "invalid"),
        (serde_json::json!({ "model": "m", "messages": [] }), 422, "invalid"),
        (serde_json::json!({ "model": "m", "messages": [1], "n": 1_000 }), 422, "invalid"),
        (serde_json::json!([]), 400, "invalid_json"),
    ] {
        user.post("/v1/runs", body).await.problem(status, code);
    }
    let key = app.api_key(&user, &["jobs"]).await;
    key.post("/v1/runs", prompt("x")).await.problem(403, "missing_scope");
    let runs: i64 =
        sqlx::query_scalar("select count(*) from run").fetch_one(app.database.pool()).await.unwrap();
    assert_eq!((runs, app.engine.stats().requests_total), (0, 0));
    assert_eq!(state(&user, &start(&user, "x").await).await, "queued");
}
