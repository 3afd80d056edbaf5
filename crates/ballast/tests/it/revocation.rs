//! How quickly, and how surely, an ended session ends: with clients that leave, with Redis out, over replicas.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::json;
use test_support::{FaultProxy, Mode, TestDatabase, test_redis};

use crate::support::{
    Deployment, Persona, Process, TestApp, eventually, free_port, insert_user, metric, ready, within,
};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

/// What the database says; asked past the fault proxies.
async fn is_revoked(database: &TestDatabase, user: &Persona) -> bool {
    sqlx::query_scalar("select revoked_at is not null from session where id = $1")
        .bind(user.session_id())
        .fetch_one(database.pool())
        .await
        .unwrap()
}

/// Case A7. A page that logs out and is closed at once: the session is over in the database, and no replica may believe
/// its access token any longer. The same for a stolen token whose thief does not wait for the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_logout_whose_client_leaves_is_finished_all_the_same() {
    let database = TestDatabase::create().await;
    let (postgres, url) = FaultProxy::in_front_of(database.url()).await;
    let app = TestApp::with(&[("DATABASE_URL", &url)]).await;
    let users = [app.user().await, app.user().await];
    users[1].refresh(&users[1].refresh_token).await.expect(200);
    app.advance_clock(TimeDelta::seconds(11));
    for (user, path) in users.iter().zip(["/v1/auth/logout", "/v1/auth/refresh"]) {
        user.get("/v1/me").await.expect(200);
        postgres.set(Mode::Latency(MS(150)));
        let body = json!({ "refresh_token": user.refresh_token });
        let request = tokio::spawn(app.anonymous().request(Method::POST, path).json(&body).send());
        eventually("the database has it", S(20), async || is_revoked(&database, user).await).await;
        // Committed, and the answer to the commit is still on its way: now the client goes.
        request.abort();
        assert!(request.await.is_err(), "it was not answered yet");
        postgres.set(Mode::Pass);
        within("the access token is dead", S(2), async || user.get("/v1/me").await.status == 401).await;
    }
}

/// Case A8, as far as a clock that can be moved is needed.
#[tokio::test(flavor = "multi_thread")]
async fn without_redis_an_ended_session_reads_until_its_token_expires_and_does_nothing_sensitive() {
    let direct = test_redis().await;
    let (redis, url) = FaultProxy::in_front_of(&direct.url).await;
    let app = TestApp::with(&[("REDIS_URL", &url)]).await;
    let other = app.replica();
    let admin = app.admin().await;
    let second = app.session_of(&admin).await;
    redis.set(Mode::Refuse);
    admin.at(&other).logout(&admin.refresh_token).await.expect(204);
    assert!(is_revoked(&app.database, &admin).await);
    for replica in [&app, &other] {
        let ended = admin.at(replica);
        ended.get("/v1/me").await.expect(200);
        // What makes, shows or ends credentials, and what only administrators may, asks the database.
        ended.post("/v1/api-keys", json!({ "name": "stolen" })).await.problem(401, "revoked");
        ended.get("/v1/api-keys").await.problem(401, "revoked");
        ended.delete(&format!("/v1/api-keys/{}", uuid::Uuid::nil())).await.problem(401, "revoked");
        ended.get("/v1/admin/queues").await.problem(401, "revoked");
        ended.refresh(&admin.refresh_token).await.problem(401, "invalid_token");
        // A session that lives may do all of it.
        second.at(replica).get("/v1/api-keys").await.expect(200);
    }
    app.advance_clock(TimeDelta::seconds(15 * 60 + 6));
    for replica in [&app, &other] {
        admin.at(replica).get("/v1/me").await.problem(401, "invalid_token");
    }
}

/// Case A8, for what is not a request: a watched job.
#[tokio::test(flavor = "multi_thread")]
async fn an_ended_session_watches_its_jobs_no_longer() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    let job = json!({ "kind": "echo", "args": { "message": "x" } });
    let path = user.post("/v1/jobs", job).await.expect(202).header("location").to_owned();
    let mut events = user.request(Method::GET, &format!("{path}/events")).send().await.unwrap();
    assert!(events.chunk().await.unwrap().is_some());
    user.at(&other).logout(&user.refresh_token).await.expect(204);
    let rest = tokio::time::timeout(S(10), events.text()).await.expect("the stream ends").unwrap();
    assert!(!rest.contains("event: job"), "{rest}");
    user.get(&path).await.problem(401, "revoked");
}

/// Case A12. Without Redis a revoked key is found out within half a minute; with Redis again it is dead at once, although
/// Redis still has the record from before.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_revoked_while_redis_was_out_is_dead_when_it_is_back() {
    let direct = test_redis().await;
    let (redis, url) = FaultProxy::in_front_of(&direct.url).await;
    let app = TestApp::with(&[("REDIS_URL", &url)]).await;
    let other = app.replica();
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    for replica in [&app, &other] {
        key.at(replica).get("/v1/me").await.expect(200);
    }
    redis.set(Mode::Refuse);
    let id = user.get("/v1/api-keys").await.expect(200).json()["data"][0]["id"].as_str().unwrap().to_owned();
    user.delete(&format!("/v1/api-keys/{id}")).await.expect(204);
    redis.set(Mode::Pass);
    for replica in [&app, &other] {
        eventually("the key is dead", S(15), async || key.at(replica).get("/v1/me").await.status == 401)
            .await;
    }
}

/// Case A8, on two processes.
#[tokio::test(flavor = "multi_thread")]
async fn a_logout_holds_within_a_second_on_both_processes_and_one_that_redis_missed_as_soon_as_it_is_back() {
    let deployment = Deployment::new().await;
    let (redis, redis_url) = FaultProxy::in_front_of(&deployment.redis.url).await;
    let ports = [free_port(), free_port()];
    let mut processes = ports.map(|port| deployment.start("api", port, &[("REDIS_URL", &redis_url)]));
    for port in ports {
        ready(port).await;
    }
    let client = reqwest::Client::builder().build().unwrap();
    let post = async |port: u16, path: &str, token: &str, body: serde_json::Value| {
        let request = client.post(format!("http://127.0.0.1:{port}{path}")).bearer_auth(token).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap_or_default())
    };
    let me = async |port: u16, token: &str| {
        let request = client.get(format!("http://127.0.0.1:{port}/v1/me")).bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    let account = json!({ "email": "a@example.com", "password": crate::support::PASSWORD });
    insert_user(deployment.database.pool(), "a@example.com", "user").await;
    let log_in = async || {
        let (status, tokens) = post(ports[0], "/v1/auth/login", "", account.clone()).await;
        assert_eq!(status, 200);
        ["access_token", "refresh_token"].map(|name| tokens[name].as_str().unwrap().to_owned())
    };

    let [access, refresh] = log_in().await;
    assert_eq!((me(ports[0], &access).await, me(ports[1], &access).await), (200, 200));
    let logout = json!({ "refresh_token": refresh });
    assert_eq!(post(ports[0], "/v1/auth/logout", "", logout).await.0, 204);
    for port in ports {
        within("the token is dead", S(1), async || me(port, &access).await == 401).await;
    }

    // Redis goes, then somebody logs out: 204, because the database knows, and the metrics say what that costs.
    let [access, refresh] = log_in().await;
    redis.set(Mode::Refuse);
    let logout = json!({ "refresh_token": refresh });
    assert_eq!(post(ports[0], "/v1/auth/logout", "", logout).await.0, 204);
    assert!(metric(ports[0], "revocation_marks_lost_total", "").await >= 1.0);
    let before = metric(ports[1], "admission_total", "local").await;
    assert_eq!(me(ports[1], &access).await, 200, "its signature is good");
    assert!(metric(ports[1], "admission_total", "local").await > before, "and that is counted");
    let (status, body) = post(ports[1], "/v1/api-keys", &access, json!({ "name": "stolen" })).await;
    assert_eq!((status, body["code"].as_str()), (401, Some("revoked")));

    redis.set(Mode::Pass);
    for port in ports {
        eventually("redis is told", S(15), async || me(port, &access).await == 401).await;
    }
    assert!(processes.iter_mut().all(Process::is_running));
}
