//! Webhooks that go out.

use std::time::Duration;

use axum::{body::Bytes, http::HeaderMap};
use futures_util::future::join_all;
use jobs::testing::fast_forward;
use serde_json::{Value, json};
use webhooks::Verifier;

use crate::{
    cli::run,
    support::{Persona, Receiver, TestApp},
};

struct Endpoint {
    id: String,
    secret: String,
}

async fn register(user: &Persona, url: &str) -> Endpoint {
    let created = user.post("/v1/webhook-endpoints", json!({ "url": url })).await.expect(201).json();
    let text = |name: &str| created[name].as_str().unwrap().to_owned();
    Endpoint { id: text("id"), secret: text("secret") }
}

async fn ping(user: &Persona, endpoint: &Endpoint) -> String {
    let pinged = user.post(&format!("/v1/webhook-endpoints/{}/ping", endpoint.id), json!({})).await;
    pinged.expect(202).json()["id"].as_str().unwrap().to_owned()
}

async fn log(user: &Persona, endpoint: &Endpoint) -> Vec<Value> {
    let log = user.get(&format!("/v1/webhook-endpoints/{}/deliveries", endpoint.id)).await.expect(200).json();
    log["data"].as_array().unwrap().clone()
}

async fn wait_for_the_next_attempt(app: &TestApp) {
    let mut c = app.database.pool().acquire().await.unwrap();
    fast_forward(&mut c, Duration::from_secs(26 * 3_600)).await;
    app.run_pending_jobs().await;
}

#[tokio::test]
async fn an_event_is_delivered_signed_and_stands_in_the_log() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let receiver = Receiver::start(&[]).await;
    let endpoint = register(&user, &receiver.url).await;
    let delivery = ping(&user, &endpoint).await;
    app.run_pending_jobs().await;
    let [(headers, body)] = &receiver.received()[..] else { panic!("{:?}", receiver.received()) };
    let verifier = Verifier::Standard(vec![endpoint.secret.parse().unwrap()]);
    let id = verifier.verify(headers, body, app.clock.now()).unwrap();
    assert_eq!(id, format!("msg_{}", delivery.replace('-', "")));
    assert_eq!(headers["content-type"], "application/json");
    let body: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(
        (body["type"].as_str(), body["data"]["endpoint_id"].as_str()),
        (Some("ping"), Some(&*endpoint.id))
    );
    assert!(body["timestamp"].is_string(), "{body}");
    let log = log(&user, &endpoint).await;
    assert_eq!(
        (log[0]["state"].as_str(), log[0]["last_status"].as_i64()),
        (Some("delivered"), Some(204)),
        "{log:?}"
    );
    assert_eq!(log[0]["id"], delivery);
    app.run_pending_jobs().await;
    assert_eq!(receiver.count(), 1, "once");
}

#[tokio::test]
async fn the_secret_is_shown_once_and_not_in_clear_in_the_database() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let endpoint = register(&user, "https://example.com/hooks").await;
    assert!(endpoint.secret.starts_with("whsec_"));
    let list = user.get("/v1/webhook-endpoints").await.expect(200);
    assert!(list.text.contains(&endpoint.id) && !list.text.contains("whsec_"), "{}", list.text);
    let rows: Vec<String> =
        sqlx::query_scalar("select webhook_endpoint::text || encode(sealed, 'escape') from webhook_endpoint")
            .fetch_all(app.database.pool())
            .await
            .unwrap();
    assert!(rows.len() == 1 && !rows[0].contains(&endpoint.secret[6..20]), "{rows:?}");
}

#[tokio::test]
async fn a_receiver_that_fails_is_tried_again_under_the_same_id_and_signed_anew() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let receiver = Receiver::start(&[500, 302]).await;
    let endpoint = register(&user, &receiver.url).await;
    ping(&user, &endpoint).await;
    app.run_pending_jobs().await;
    let first = log(&user, &endpoint).await;
    assert_eq!((first[0]["state"].as_str(), first[0]["last_status"].as_i64()), (Some("pending"), Some(500)));
    wait_for_the_next_attempt(&app).await;
    wait_for_the_next_attempt(&app).await;
    let verifier = Verifier::Standard(vec![endpoint.secret.parse().unwrap()]);
    let verified =
        |(headers, body): &(HeaderMap, Bytes)| verifier.verify(headers, body, app.clock.now()).unwrap();
    let ids: Vec<String> = receiver.received().iter().map(verified).collect();
    assert_eq!(ids.len(), 3, "a redirect is a failure too");
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let log = log(&user, &endpoint).await;
    assert_eq!(
        (log[0]["state"].as_str(), log[0]["attempts"].as_i64()),
        (Some("delivered"), Some(3)),
        "{log:?}"
    );
}

#[tokio::test]
async fn what_never_arrives_is_given_up_and_the_log_says_so() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let receiver = Receiver::start(&[503; 20]).await;
    let endpoint = register(&user, &receiver.url).await;
    ping(&user, &endpoint).await;
    for _ in 0..12 {
        wait_for_the_next_attempt(&app).await;
    }
    assert_eq!(receiver.count(), 10);
    let log = log(&user, &endpoint).await;
    assert_eq!(
        (log[0]["state"].as_str(), log[0]["attempts"].as_i64()),
        (Some("failed"), Some(10)),
        "{log:?}"
    );
    let discarded: i64 = sqlx::query_scalar("select count(*) from job_done where state = 'discarded'")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(discarded, 0, "somebody else's failure is not reported as one of ours");
}

#[tokio::test]
async fn an_endpoint_that_says_it_is_gone_is_left_alone() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let receiver = Receiver::start(&[410]).await;
    let endpoint = register(&user, &receiver.url).await;
    ping(&user, &endpoint).await;
    app.run_pending_jobs().await;
    ping(&user, &endpoint).await;
    app.run_pending_jobs().await;
    assert_eq!(receiver.count(), 1);
    let states: Vec<String> =
        log(&user, &endpoint).await.iter().map(|d| d["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["failed", "failed"]);
    let list = user.get("/v1/webhook-endpoints").await.expect(200).json();
    assert!(list["data"][0]["disabled_at"].is_string(), "{list}");
}

#[tokio::test]
async fn addresses_inside_are_refused_when_they_are_registered_and_when_they_are_used() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for url in [
        "http://169.254.169.254/latest/meta-data",
        "https://10.0.0.1/",
        "https://[fd00::1]/",
        "https://0x0a000001/",
        "https://[64:ff9b::a00:1]/",
        "ftp://example.com/",
        "https://user:pass@example.com/",
        "",
        "nonsense",
        "https://example.com/\u{0}",
        &format!("https://example.com/{}", "x".repeat(3_000)),
    ] {
        let refused = user.post("/v1/webhook-endpoints", json!({ "url": url })).await.problem(422, "invalid");
        assert_eq!(refused.json()["errors"][0]["field"], "url", "{url}");
    }
    let wrong = json!({ "url": "https://example.com", "event_types": ["nonsense"] });
    user.post("/v1/webhook-endpoints", wrong).await.problem(422, "invalid");
    let endpoint = register(&user, "https://example.com/hooks").await;
    sqlx::query("update webhook_endpoint set url = 'http://169.254.169.254/'")
        .execute(app.database.pool())
        .await
        .unwrap();
    ping(&user, &endpoint).await;
    app.run_pending_jobs().await;
    let log = log(&user, &endpoint).await;
    assert_eq!(log[0]["last_error"], "the address is not public", "{log:?}");
}

#[tokio::test]
async fn endpoints_are_their_owners_alone_and_never_a_keys() {
    let app = TestApp::start().await;
    let (user, stranger) = (app.user().await, app.user().await);
    let key = app.api_key(&user, &["jobs", "ai"]).await;
    let endpoint = register(&user, "https://example.com/hooks").await;
    let path = format!("/v1/webhook-endpoints/{}", endpoint.id);
    stranger.get(&format!("{path}/deliveries")).await.problem(404, "not_found");
    stranger.post(&format!("{path}/ping"), json!({})).await.problem(404, "not_found");
    stranger.delete(&path).await.problem(404, "not_found");
    assert_eq!(stranger.get("/v1/webhook-endpoints").await.expect(200).json()["data"], json!([]));
    key.get("/v1/webhook-endpoints").await.problem(403, "session_required");
    key.post("/v1/webhook-endpoints", json!({ "url": "https://evil.example" }))
        .await
        .problem(403, "session_required");
    key.delete(&path).await.problem(403, "session_required");
    user.delete(&path).await.expect(204);
    user.delete(&path).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_deleted_endpoint_gets_nothing_any_more_and_there_are_at_most_twenty() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let receiver = Receiver::start(&[]).await;
    let endpoint = register(&user, &receiver.url).await;
    ping(&user, &endpoint).await;
    user.delete(&format!("/v1/webhook-endpoints/{}", endpoint.id)).await.expect(204);
    app.run_pending_jobs().await;
    assert_eq!(receiver.count(), 0);
    let many =
        join_all((0..25).map(|_| user.post("/v1/webhook-endpoints", json!({ "url": receiver.url })))).await;
    let made = many.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(made, 20, "also when they are asked for at once");
    for answer in many.into_iter().filter(|answer| answer.status != 201) {
        answer.problem(409, "too_many_webhook_endpoints");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_of_keys_takes_the_secrets_of_endpoints_along() {
    let (old, new) = ("1f".repeat(31) + "01", "2e".repeat(31) + "02");
    let app = TestApp::with(&[("CHANNEL_ENCRYPTION_KEY", &old)]).await;
    let user = app.user().await;
    let receiver = Receiver::start(&[]).await;
    let endpoint = register(&user, &receiver.url).await;
    let both = format!("{new},{old}");
    let vars = [("DATABASE_URL", app.database.url()), ("CHANNEL_ENCRYPTION_KEY", &both)];
    let (code, text, stderr) = run(&["credentials", "rotate"], &vars);
    assert!(code == 0 && text.contains("1 encrypted anew"), "{text}{stderr}");
    let exchanged = app.replica_with(&[("CHANNEL_ENCRYPTION_KEY", &new)]);
    ping(&user.at(&exchanged), &endpoint).await;
    exchanged.run_pending_jobs().await;
    let received = receiver.received();
    let verifier = Verifier::Standard(vec![endpoint.secret.parse().unwrap()]);
    assert!(
        verifier.verify(&received[0].0, &received[0].1, app.clock.now()).is_ok(),
        "the same secret as before"
    );
}
