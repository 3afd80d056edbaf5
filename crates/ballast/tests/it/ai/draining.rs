//! Streams and the end of the process.

use std::time::Instant;

use futures_util::future::join_all;

use super::{S, STREAMING, chat, events, last_error, open, read, streaming, usage_rows};
use crate::support::TestApp;

#[tokio::test(flavor = "multi_thread")]
async fn live_streams_finish_and_stuck_ones_get_a_last_event_in_time() {
    let app = TestApp::with(&[("SHUTDOWN_BUDGET", "5s"), ("ENGINE_HEADER_HOLD", "100ms")]).await;
    let user = app.user().await;
    let live =
        (0..20).map(|_| open(&user, "/v1/chat/completions", chat("[[sim tokens=20 token-interval-ms=50]]")));
    let live = join_all(live).await;
    let mut stuck = vec![];
    for route in STREAMING {
        stuck.push(open(&user, route, streaming(route, "[[sim fault=stall:2]]")).await);
    }
    stuck.push(open(&user, "/v1/chat/completions", chat("[[sim fault=hang-before-headers]]")).await);
    app.lifecycle.begin_shutdown();
    let started = Instant::now();
    let lifecycle = app.lifecycle.clone();
    let stopped = tokio::spawn(async move { lifecycle.run_until_stopped().await });
    let reading = (
        join_all(live.into_iter().map(reqwest::Response::text)),
        join_all(stuck.into_iter().map(reqwest::Response::text)),
    );
    let (live, stuck) = tokio::join!(reading.0, reading.1);
    for text in live {
        assert!(text.as_ref().unwrap().ends_with("data: [DONE]\n\n"), "{text:?}");
    }
    for text in stuck {
        let error = last_error(&text.unwrap());
        assert_eq!(error["code"], "server_shutdown", "{error}");
        if error["sequence_number"].is_null() {
            assert_eq!(error["type"], "server_shutdown");
        }
    }
    assert_eq!(stopped.await.unwrap(), 0, "no task had to be cut");
    assert!(started.elapsed() < S(6), "{:?}", started.elapsed());
    app.engine.wait_for(S(5), |stats| stats.requests_open == 0).await;
    let outcomes: Vec<_> = usage_rows(&app).await.into_iter().map(|row| row.0).collect();
    assert_eq!(outcomes.iter().filter(|o| *o == "ok").count(), 20, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|o| *o == "drained").count(), 4, "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_its_answer_is_told_to_come_again() {
    let app = TestApp::with(&[("SHUTDOWN_BUDGET", "2s")]).await;
    let user = app.user().await;
    let waiting = [
        chat("[[sim fault=hang-before-headers]]"),
        super::whole("/v1/chat/completions", "[[sim fault=hang-before-headers]]"),
    ];
    let waiting = waiting.map(|body| user.post("/v1/chat/completions", body));
    let (answers, ()) = tokio::join!(join_all(waiting), async {
        app.engine.wait_for(S(5), |stats| stats.requests_open == 2).await;
        app.lifecycle.begin_shutdown();
        app.lifecycle.run_until_stopped().await;
    });
    for answer in answers {
        let answer = answer.expect(503);
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(answer.json()["error"]["type"], "server_shutdown");
    }
}

/// Case A8.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_loses_its_streams() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "100ms")]).await;
    let user = app.user().await;
    let mut response =
        open(&user, "/v1/chat/completions", chat("[[sim tokens=1000 token-interval-ms=100]]")).await;
    response.chunk().await.unwrap();
    user.post("/v1/auth/logout", serde_json::json!({"refresh_token": user.refresh_token})).await;
    user.get("/v1/me").await.expect(401);
    // Looked at with every heartbeat, but not more often than every second.
    let started = Instant::now();
    let text = tokio::time::timeout(S(10), response.text()).await.unwrap().unwrap();
    assert!(started.elapsed() < S(9), "{:?}", started.elapsed());
    assert_eq!(last_error(&text)["code"], "revoked");
    assert!(events(&text).len() > 2);
    assert!(read(&app.user().await, "/v1/chat/completions", chat("x")).await.ends_with("[DONE]\n\n"));
}

/// Case A12, for what runs already: revoked on one replica, ended on the other; with its record in Redis and without.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_api_key_loses_its_streams_on_every_replica() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "100ms")]).await;
    let other = app.replica();
    let user = app.user().await;
    for redis_forgets in [false, true] {
        let body = serde_json::json!({ "name": "machine", "scopes": ["ai"] });
        let made = user.post("/v1/api-keys", body).await.expect(201).json();
        let key = app.anonymous().with_token(made["key"].as_str().unwrap());
        let mut response =
            open(&key, "/v1/chat/completions", chat("[[sim tokens=1000 token-interval-ms=100]]")).await;
        response.chunk().await.unwrap();
        let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
        user.at(&other).delete(&path).await.expect(204);
        if redis_forgets {
            let mut redis = app.redis.connection().await;
            let record =
                format!("{}v1:key:{}", app.redis.prefix, &made["starts_with"].as_str().unwrap()[5..]);
            db::redis_client::cmd("DEL").arg(record).query_async::<()>(&mut redis).await.unwrap();
        }
        let started = Instant::now();
        let text = tokio::time::timeout(S(10), response.text()).await.unwrap().unwrap();
        assert!(started.elapsed() < S(9), "{:?}", started.elapsed());
        assert_eq!(last_error(&text)["code"], "revoked");
    }
}
