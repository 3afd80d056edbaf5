//! API keys.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;
use test_support::{FaultProxy, Mode};

use crate::support::{Deployment, TestApp, eventually, free_port, ready};

/// Case A12.
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

/// Case A12.
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

/// Case A12.
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

/// Case H5.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_a_hundred_keys_in_use_and_no_more_however_many_are_made_at_once() {
    let app = TestApp::start().await;
    let user = app.user().await;
    sqlx::query(
        "insert into api_key (id, user_id, name, public_id, secret_hash, scopes, revoked_at)
         select gen_random_uuid(), users.id, 'x', 'p' || n, sha256(n::text::bytea), '{}', case when n > 98 then now() end
         from users, generate_series(1, 300) n",
    )
    .execute(app.database.pool())
    .await
    .unwrap();
    let make = async || user.post("/v1/api-keys", json!({ "name": "one more" })).await;
    let answers = futures_util::future::join_all((0..8).map(|_| make())).await;
    let made: Vec<_> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(made.len(), 2, "{answers:?}");
    make().await.problem(409, "too_many_api_keys");
    let shown = user.get("/v1/api-keys").await.expect(200).json();
    assert_eq!(shown["data"].as_array().unwrap().len(), 200, "the list is bounded too");
    let id = made[0].json()["id"].as_str().unwrap().to_owned();
    user.delete(&format!("/v1/api-keys/{id}")).await.expect(204);
    make().await.expect(201);
}

/// Case A12.
/// The route has found the session alive, and waits for the one who ends it: had it not looked again, the key would be the one
/// that outlives the account's end.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_made_while_its_session_ends_is_not_made() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let mut ending = app.database.pool().begin().await.unwrap();
    sqlx::query("select id from users for no key update").execute(&mut *ending).await.unwrap();
    let caller = user.clone();
    let making = tokio::spawn(async move { caller.post("/v1/api-keys", json!({ "name": "late" })).await });
    eventually("it waits", Duration::from_secs(30), async || {
        let waiting = "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')";
        sqlx::query_scalar::<_, bool>(waiting).fetch_one(app.database.pool()).await.unwrap()
    })
    .await;
    sqlx::query("update session set revoked_at = now()").execute(&mut *ending).await.unwrap();
    ending.commit().await.unwrap();
    making.await.unwrap().problem(401, "revoked");
    let keys: i64 =
        sqlx::query_scalar("select count(*) from api_key").fetch_one(app.database.pool()).await.unwrap();
    assert_eq!(keys, 0);
}

/// Case A12.
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

/// Case A8.
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

/// Case A12: the API's way to Postgres leads through a proxy; a mistyped key sends nothing there, an invented one does.
#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_key_asks_no_database() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let key = user.post("/v1/api-keys", json!({ "name": "x" })).await.expect(201).json();
    let key = key["key"].as_str().unwrap().to_owned();
    let (proxy, url) = FaultProxy::in_front_of(app.database.url()).await;
    let behind = app.replica_with(&[("DATABASE_URL", &url)]);
    // What it does by itself at its start is not what is asked here.
    eventually("the replica has done its start", Duration::from_secs(10), async || proxy.accepted() > 0)
        .await;
    proxy.set(Mode::Refuse);
    for at in (5..key.len()).step_by(7) {
        let mut mistyped = key.clone().into_bytes();
        mistyped[at] = if mistyped[at] == b'0' { b'1' } else { b'0' };
        let mistyped = String::from_utf8(mistyped).unwrap();
        let answer = behind.anonymous().with_token(&mistyped).get("/v1/me").await;
        answer.problem(401, "invalid_token");
    }
    // The same database that cannot be asked makes a 503 of a key whose checksum fits.
    let invented = api::auth::ApiKeySecret::generate().unwrap().text();
    behind.anonymous().with_token(&invented).get("/v1/me").await.problem(503, "database_unavailable");
}

#[tokio::test]
async fn the_last_use_of_a_key_is_shown_and_costs_no_write_per_request() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let made = user.post("/v1/api-keys", json!({ "name": "used" })).await.expect(201).json();
    let used = async || user.get("/v1/api-keys").await.expect(200).json()["data"][0]["last_used_at"].clone();
    assert_eq!(used().await, serde_json::Value::Null);
    let key = app.anonymous().with_token(made["key"].as_str().unwrap());
    key.get("/v1/me").await.expect(200);
    let first = used().await;
    assert!(first.is_string(), "{first}");
    let version = "select xmin::text from api_key";
    let before: String = sqlx::query_scalar(version).fetch_one(app.database.pool()).await.unwrap();
    for replica in [&app, &app.replica()] {
        for _ in 0..20 {
            key.at(replica).get("/v1/me").await.expect(200);
        }
    }
    let after: String = sqlx::query_scalar(version).fetch_one(app.database.pool()).await.unwrap();
    assert_eq!((before, first), (after, used().await), "the row was not written again");
}

/// Case A12.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_query_is_no_credential_and_is_never_logged() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let api = deployment.start("api", port, &[("LOG_LEVEL", "debug")]);
    ready(port).await;
    let key = api::auth::ApiKeySecret::from_seed("canary").text();
    let client = reqwest::Client::builder().build().unwrap();
    for name in ["api_key", "key", "access_token", "x-api-key", "token"] {
        let answer = client.get(format!("http://127.0.0.1:{port}/v1/me?{name}={key}")).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{name}");
        assert!(!answer.text().await.unwrap().contains(&key[5..21]));
    }
    eventually("the requests are logged", Duration::from_secs(5), async || {
        api.output().matches("\"route\":\"/v1/me\"").count() >= 5
    })
    .await;
    assert!(!api.output().contains(&key[5..21]), "{}", api.output());
}
