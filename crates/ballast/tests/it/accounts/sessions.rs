//! Where one is logged in, and an end to it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{audited, refresh};
use crate::support::{Answer, PASSWORD, Persona, TestApp, eventually};

async fn sessions(user: &Persona) -> Vec<Value> {
    user.get("/v1/sessions").await.expect(200).json()["data"].as_array().unwrap().clone()
}

async fn logout_all(user: &Persona) -> Answer {
    user.send(user.request(reqwest::Method::POST, "/v1/auth/logout-all")).await
}

async fn log_in_as(app: &TestApp, email: &str, agent: &str) -> Persona {
    let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/login");
    let request = request.header("user-agent", agent).json(&json!({ "email": email, "password": PASSWORD }));
    let tokens = app.anonymous().send(request).await.expect(200).json();
    let mut persona = app.anonymous().with_token(tokens["access_token"].as_str().unwrap());
    tokens["refresh_token"].as_str().unwrap().clone_into(&mut persona.refresh_token);
    persona
}

#[tokio::test]
async fn sessions_are_listed_and_ended_one_by_one_on_every_replica() {
    let app = TestApp::start().await;
    let replica = app.replica();
    let user = app.user().await;
    let phone = log_in_as(&app, &user.email, "Phone/1.0").await;
    let stranger = app.user().await;
    let listed = sessions(&user).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    let of_phone = listed.iter().find(|s| s["user_agent"] == "Phone/1.0").unwrap();
    assert_eq!((&of_phone["current"], &of_phone["ip"]), (&json!(false), &json!("127.0.0.1")));
    assert_eq!(listed.iter().filter(|s| s["current"] == true).count(), 1);
    assert!(sessions(&phone).await.iter().any(|s| s["current"] == true && s["user_agent"] == "Phone/1.0"));
    assert_eq!(sessions(&stranger).await.len(), 1);

    let path = format!("/v1/sessions/{}", of_phone["id"].as_str().unwrap());
    let unknown = stranger.delete("/v1/sessions/00000000-0000-7000-8000-000000000000").await;
    let (mut unknown, mut not_mine) = (
        unknown.problem(404, "not_found").json(),
        stranger.delete(&path).await.problem(404, "not_found").json(),
    );
    (unknown["request_id"], not_mine["request_id"]) = (Value::Null, Value::Null);
    assert_eq!(unknown, not_mine, "another's is as unknown as none");
    phone.at(&replica).get("/v1/me").await.expect(200);

    user.delete(&path).await.expect(204);
    phone.at(&replica).get("/v1/me").await.problem(401, "revoked");
    assert_eq!(refresh(&replica, &phone.refresh_token).await.0, 401);
    user.delete(&path).await.problem(404, "not_found");
    user.delete("/v1/sessions/nonsense").await.problem(404, "not_found");
    assert_eq!((sessions(&user).await.len(), audited(&app, "session_revoked").await), (1, 1));
}

#[tokio::test]
async fn the_last_use_of_a_session_moves_with_each_refresh() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let other = app.session_of(&user).await;
    let last_use = async |current: bool| {
        let listed = sessions(&user).await;
        let session = listed.iter().find(|s| s["current"] == current).unwrap();
        session["last_used_at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap()
    };
    let (before, unused) = (last_use(true).await, last_use(false).await);
    app.advance_clock(TimeDelta::minutes(10));
    assert_eq!(refresh(&app, &user.refresh_token).await.0, 200);
    let moved = last_use(true).await - before;
    assert!(moved >= TimeDelta::minutes(10) && moved < TimeDelta::minutes(20), "{moved}");
    assert_eq!(last_use(false).await, unused, "the other one was not used");
    assert_eq!(refresh(&app, &other.refresh_token).await.0, 200);
    assert!(last_use(false).await > unused);
    // The most recently used is listed first.
    assert_eq!(sessions(&user).await[0]["current"], false);
}

#[tokio::test]
async fn a_session_that_can_no_longer_be_renewed_is_not_listed() {
    let app = TestApp::start().await;
    let user = app.user().await;
    app.advance_clock(TimeDelta::days(31));
    let back = app.log_in(&user.email).await;
    assert_eq!(sessions(&back).await.len(), 1);
}

#[tokio::test]
async fn logging_out_everywhere_ends_every_session_of_this_user_alone() {
    let app = TestApp::start().await;
    let replica = app.replica();
    let user = app.user().await;
    let (other, stranger) = (app.log_in(&user.email).await, app.user().await);
    logout_all(&user).await.expect(204);
    for session in [&user, &other] {
        session.at(&replica).get("/v1/me").await.problem(401, "revoked");
        assert_eq!(refresh(&replica, &session.refresh_token).await.0, 401);
    }
    stranger.get("/v1/me").await.expect(200);
    app.log_in(&user.email).await.get("/v1/me").await.expect(200);
    assert_eq!(audited(&app, "logout_all").await, 1);
}

#[tokio::test]
async fn an_api_key_has_no_say_over_sessions() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai", "jobs"]).await;
    key.get("/v1/sessions").await.problem(403, "session_required");
    key.delete("/v1/sessions/00000000-0000-7000-8000-000000000000").await.problem(403, "session_required");
    logout_all(&key).await.problem(403, "session_required");
    logout_all(&user).await.expect(204);
    key.get("/v1/me").await.expect(200);
}

/// Case A8.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_its_user_ends_loses_its_running_stream() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "100ms")]).await;
    let replica = app.replica();
    let user = app.user().await;
    let stolen = app.log_in(&user.email).await;
    let body = json!({ "model": "sim-small", "stream": true,
        "messages": [{ "role": "user", "content": "[[sim tokens=100000 token-interval-ms=20]]" }] });
    let request = stolen.request(reqwest::Method::POST, "/v1/chat/completions").json(&body);
    let mut stream = request.send().await.unwrap().bytes_stream();
    stream.next().await.unwrap().unwrap();
    let others: Vec<_> = sessions(&user).await.into_iter().filter(|s| s["current"] == false).collect();
    user.at(&replica)
        .delete(&format!("/v1/sessions/{}", others[0]["id"].as_str().unwrap()))
        .await
        .expect(204);
    let rest = tokio::time::timeout(Duration::from_secs(30), async {
        let mut text = Vec::new();
        while let Some(Ok(chunk)) = stream.next().await {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let rest = rest.await.expect("the stream ends soon after its session");
    assert!(rest.contains("revoked") && !rest.contains("[DONE]"), "{rest}");
    eventually("the engine is idle", Duration::from_secs(5), async || app.state.ai.open() == 0).await;
}

/// Case A8.
#[tokio::test]
async fn without_redis_an_ended_session_does_nothing_that_matters_and_ends_with_its_token() {
    let app = TestApp::with(&[("REDIS_URL", "redis://127.0.0.1:1")]).await;
    let user = app.user().await;
    logout_all(&user).await.expect(204);
    user.get("/v1/me").await.expect(200);
    user.get("/v1/sessions").await.problem(401, "revoked");
    user.post("/v1/api-keys", json!({ "name": "x" })).await.problem(401, "revoked");
    let change = json!({ "current_password": PASSWORD, "new_password": "another password" });
    user.post("/v1/auth/password", change).await.problem(401, "revoked");
    app.advance_clock(TimeDelta::minutes(15) + TimeDelta::seconds(6));
    user.get("/v1/me").await.problem(401, "invalid_token");
}
