//! API keys.

use chrono::TimeDelta;
use serde_json::json;

use crate::support::TestApp;

#[tokio::test]
async fn a_key_is_shown_once_works_in_both_headers_and_ends_everywhere_when_revoked() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    let made = user.post("/v1/api-keys", json!({ "name": "ci" })).await.expect(201).json();
    let key = made["key"].as_str().unwrap();
    let as_bearer = app.anonymous().with_token(key);
    let me = as_bearer.get("/v1/me").await.expect(200).json();
    assert_eq!(
        (me["email"].as_str(), me["authenticated_by"].as_str()),
        (Some(user.email.as_str()), Some("api_key"))
    );
    let with_header = app.anonymous().request(reqwest::Method::GET, "/v1/me").header("x-api-key", key);
    app.anonymous().send(with_header).await.expect(200);
    as_bearer.at(&other).get("/v1/me").await.expect(200);

    let listed = user.get("/v1/api-keys").await.expect(200);
    assert!(!listed.text.contains(key) && listed.text.contains(made["starts_with"].as_str().unwrap()));

    user.delete(&format!("/v1/api-keys/{}", made["id"].as_str().unwrap())).await.expect(204);
    as_bearer.get("/v1/me").await.problem(401, "invalid_token");
    as_bearer.at(&other).get("/v1/me").await.problem(401, "invalid_token");
}

#[tokio::test]
async fn a_key_cannot_make_keys_and_needs_the_scope_of_what_it_does() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    key.post("/v1/api-keys", json!({ "name": "more" })).await.problem(403, "session_required");
    key.get("/v1/api-keys").await.problem(403, "session_required");
    key.post("/v1/jobs", json!({ "kind": "echo", "args": { "message": "x" } }))
        .await
        .problem(403, "missing_scope");
}

#[tokio::test]
async fn wrong_keys_are_charged_to_their_address_and_not_to_the_owner() {
    let app = TestApp::with(&[("RATE_LIMIT_GLOBAL", "20/1h")]).await;
    let user = app.user().await;
    let body = json!({ "name": "guessed" });
    let key = user.post("/v1/api-keys", body).await.expect(201).json()["key"].as_str().unwrap().to_owned();
    // The same public id with another secret, and a checksum that fits.
    let public_id = &key[5..21];
    let secret = "0".repeat(64);
    let sum =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{public_id}{secret}").as_bytes());
    let sum = api::auth::hex(&sum.as_ref()[..4]);
    let forged = app.anonymous().with_token(&format!("blst_{public_id}_{secret}{sum}"));
    let mut seen = Vec::new();
    for _ in 0..40 {
        seen.push(forged.get("/v1/me").await.status);
    }
    assert!(seen[..10].iter().all(|s| *s == 401), "{seen:?}");
    assert!(seen[25..].iter().all(|s| *s == 429), "guessing is charged to the address: {seen:?}");
    let genuine = app.anonymous().with_token(&key);
    genuine.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn names_scopes_and_dates_are_checked() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for body in [
        json!({ "name": "" }),
        json!({ "name": "x".repeat(101) }),
        json!({ "name": "nul\0" }),
        json!({ "name": "x", "scopes": ["everything"] }),
        json!({ "name": "x", "expires_at": "2001-01-01T00:00:00Z" }),
        json!({ "name": "x", "expires_at": "tomorrow" }),
        json!({ "name": "x", "user_id": "someone" }),
    ] {
        user.post("/v1/api-keys", body).await.problem(422, "invalid");
    }
}

#[tokio::test]
async fn a_key_ends_at_its_time() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = json!({ "name": "short", "expires_at": app.clock.now() + TimeDelta::minutes(10) });
    let key = user.post("/v1/api-keys", body).await.expect(201).json()["key"].as_str().unwrap().to_owned();
    let machine = app.anonymous().with_token(&key);
    machine.get("/v1/me").await.expect(200);
    app.advance_clock(TimeDelta::minutes(11));
    machine.get("/v1/me").await.problem(401, "invalid_token");
}

#[tokio::test]
async fn an_ended_session_makes_no_key_even_when_redis_forgot_that_it_ended() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let logout = json!({ "refresh_token": user.refresh_token });
    app.anonymous().post("/v1/auth/logout", logout).await.expect(204);
    let mut redis = app.redis.connection().await;
    let pattern = format!("{}v1:rev:*", app.redis.prefix);
    let marks: Vec<String> =
        db::redis_client::cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
    assert_eq!(marks.len(), 1);
    db::redis_client::cmd("DEL").arg(&marks).query_async::<()>(&mut redis).await.unwrap();
    user.post("/v1/api-keys", json!({ "name": "stolen" })).await.problem(401, "revoked");
}
