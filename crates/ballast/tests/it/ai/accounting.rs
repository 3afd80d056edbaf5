//! What is counted.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use test_support::{FaultProxy, Mode, TestDatabase};

use super::{S, STREAMING, chat, open, read, streaming, usage_rows, whole};
use crate::support::{TestApp, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_shown_the_moment_an_answer_has_ended() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let mut requests = 0;
    for route in STREAMING {
        let text = read(&user, route, streaming(route, "[[sim tokens=7]]")).await;
        assert!(text.contains("[DONE]") || text.contains("completed") || text.contains("done"), "{text}");
        requests += 1;
        let report = user.get("/v1/usage").await.expect(200).json();
        assert_eq!(report["complete"], true);
        let total: i64 =
            report["data"].as_array().unwrap().iter().map(|d| d["requests"].as_i64().unwrap()).sum();
        assert_eq!(total, requests, "{route}: {report}");
    }
    user.post("/v1/chat/completions", whole("/v1/chat/completions", "[[sim tokens=7]]")).await.expect(200);
    let report = user.get("/v1/usage?days=1").await.expect(200).json();
    let row = report["data"].as_array().unwrap().iter().find(|row| row["model"] == "sim-small").unwrap();
    assert_eq!(
        (&row["requests"], &row["errors"], &row["completion_tokens"]),
        (&json!(3), &json!(0), &json!(21))
    );
    assert!(row["prompt_tokens"].as_i64().unwrap() > 0);
    assert!(usage_rows(&app).await.iter().all(|row| row.0 == "ok" && row.2 == 7 && !row.3));
    let stranger = app.user().await;
    assert_eq!(stranger.get("/v1/usage").await.expect(200).json()["data"], json!([]));
    stranger.get("/v1/usage?days=0").await.problem(422, "invalid");
    stranger.get("/v1/usage?day=1").await.problem(400, "invalid_query");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_left_is_counted_as_estimated() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let mut response =
        open(&user, "/v1/chat/completions", chat("[[sim fault=stall:5]] twelve more words of prompt")).await;
    let mut seen = String::new();
    while seen.matches("\n\n").count() < 6 {
        seen.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
    }
    drop(response);
    crate::support::eventually("it is over", S(2), async || app.state.ai.open() == 0).await;
    let rows = usage_rows(&app).await;
    let [(outcome, prompt, completion, estimated)] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((outcome.as_str(), *estimated), ("client_abort", true));
    assert!((8..40).contains(prompt) && (5..=7).contains(completion), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_answers_are_a_thousand_rows_of_the_right_owner() {
    let app = TestApp::with(&[
        ("RATE_LIMIT_GLOBAL", "100000/1m"),
        ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
        ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
        ("AI_CONCURRENT_STREAMS", "1000"),
    ])
    .await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    let body = json!({"model": "sim-embedding", "input": "x", "dimensions": 8});
    for _ in 0..20 {
        let answers =
            (0..50).map(|i| if i % 2 == 0 { &user } else { &key }.post("/v1/embeddings", body.clone()));
        assert!(join_all(answers).await.iter().all(|answer| answer.status == 200));
    }
    assert!(app.state.ai.flush_usage().await);
    let (all, by_key, users): (i64, i64, i64) =
        sqlx::query_as("select count(*), count(api_key_id), count(distinct user_id) from usage_event")
            .fetch_one(app.database.pool())
            .await
            .unwrap();
    assert_eq!((all, by_key, users), (1_000, 500, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_written_without_being_asked_for_and_at_the_latest_at_the_shutdown() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let count = async || -> i64 {
        sqlx::query_scalar("select count(*) from usage_event").fetch_one(app.database.pool()).await.unwrap()
    };
    read(&user, "/v1/chat/completions", chat("x")).await;
    crate::support::eventually("the row is written", S(2), async || count().await == 1).await;
    let request = user.request(Method::POST, "/v1/embeddings").json(&json!({"model": "m", "input": "x"}));
    assert_eq!(user.send(request).await.status, 200);
    app.lifecycle.begin_shutdown();
    assert_eq!(app.lifecycle.run_until_stopped().await, 0);
    assert_eq!(count().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_model_names_are_stored_as_they_are() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let model = "x'); drop table usage_event; --\u{202e}";
    let mut body = chat("[[sim tokens=1]]");
    body["model"] = json!(model);
    read(&user, "/v1/chat/completions", body).await;
    let report = user.get("/v1/usage").await.expect(200).json();
    assert_eq!(report["data"][0]["model"], model);
}

async fn rows_in(database: &TestDatabase) -> i64 {
    sqlx::query_scalar("select count(*) from usage_event").fetch_one(database.pool()).await.unwrap()
}

/// The database has written the row, and nobody was told so: written again, it would be billed twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_commit_was_not_answered_is_there_once() {
    let database = TestDatabase::create().await;
    let (postgres, url) = FaultProxy::in_front_of(database.url()).await;
    // One connection, on which the statement is prepared: then the next row is one question and one answer.
    let app = TestApp::with(&[("DATABASE_URL", &url), ("DATABASE_POOL_SIZE", "1")]).await;
    let user = app.user().await;
    read(&user, "/v1/chat/completions", chat("[[sim tokens=1]]")).await;
    assert!(app.state.ai.flush_usage().await);
    // It is looked at before it is lent again.
    let pool = app.state.database.pool();
    eventually("the connection is free", S(5), async || pool.num_idle() == 1).await;
    postgres.set(Mode::CutAfter(0));
    read(&user, "/v1/chat/completions", chat("[[sim tokens=1]]")).await;
    eventually("the row is there", S(5), async || rows_in(&database).await == 2).await;
    assert!(!app.state.ai.flush_usage().await, "the writer does not know it");
    postgres.set(Mode::Pass);
    eventually("it was written again", S(10), async || app.state.ai.flush_usage().await).await;
    assert_eq!(rows_in(&database).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_wait_while_the_database_is_away_and_are_written_when_it_is_back() {
    let database = TestDatabase::create().await;
    let (postgres, url) = FaultProxy::in_front_of(database.url()).await;
    let app = TestApp::with(&[("DATABASE_URL", &url)]).await;
    let user = app.user().await;
    postgres.set(Mode::Refuse);
    let text = read(&user, "/v1/chat/completions", chat("[[sim tokens=1]]")).await;
    assert!(text.ends_with("[DONE]\n\n"), "a stream does not wait for it: {text}");
    assert!(!app.state.ai.flush_usage().await);
    assert_eq!(rows_in(&database).await, 0);
    postgres.set(Mode::Pass);
    eventually("what waited is written", S(20), async || app.state.ai.flush_usage().await).await;
    assert_eq!(rows_in(&database).await, 1);
}
