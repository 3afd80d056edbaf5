//! Webhooks that come in.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use chrono::TimeDelta;
use futures_util::future::join_all;
use jobs::{JobState, ListFilter};
use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, TestApp};

const CRM: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const CRM_NEXT: &str = "whsec_bmV4dCBuZXh0IG5leHQgbmV4dCBuZXh0IG5leHQ=";
pub(crate) const STRIPE: &str = "whsec_test_secret";

pub(crate) async fn app() -> TestApp {
    let both = format!("crm={CRM},crm={CRM_NEXT}");
    TestApp::with(&[("WEBHOOK_SECRETS", &both), ("STRIPE_WEBHOOK_SECRET", STRIPE)]).await
}

/// Sends as a sender of Standard Webhooks does.
async fn send(app: &TestApp, secret: &str, id: &str, body: &str) -> Answer {
    let now = app.clock.now().timestamp();
    let signature = webhooks::standard::sign(&secret.parse().unwrap(), id, now, body.as_bytes());
    let anonymous = app.anonymous();
    let request = anonymous
        .request(Method::POST, "/v1/webhooks/crm")
        .header("webhook-id", id)
        .header("webhook-timestamp", now)
        .header("webhook-signature", signature)
        .body(body.to_owned());
    anonymous.send(request).await
}

pub(crate) async fn send_stripe(app: &TestApp, secret: &str, body: &str) -> Answer {
    let now = app.clock.now().timestamp();
    let mac = sign(&Key::new(HMAC_SHA256, secret.as_bytes()), format!("{now}.{body}").as_bytes());
    let hex = mac.as_ref().iter().fold(String::new(), |hex, b| hex + &format!("{b:02x}"));
    let anonymous = app.anonymous();
    let request = anonymous
        .request(Method::POST, "/v1/webhooks/stripe")
        .header("stripe-signature", format!("t={now},v1={hex}"))
        .body(body.to_owned());
    anonymous.send(request).await
}

pub(crate) async fn jobs_of(app: &TestApp) -> Vec<jobs::JobView> {
    let filter = ListFilter { kind: Some("process_webhook".into()), ..Default::default() };
    jobs::list(&mut app.database.pool().acquire().await.unwrap(), &filter).await.unwrap()
}

#[tokio::test]
async fn a_signed_event_is_stored_once_and_acted_upon_once_however_often_it_is_sent() {
    let app = app().await;
    let body = r#"{"type":"contact.created","data":{"name":"a\u0000ü"}}"#;
    let first = send(&app, CRM, "msg_1", body).await.expect(200).json();
    assert_eq!(first, json!({"id": "msg_1", "duplicate": false}));
    let again = send(&app, CRM_NEXT, "msg_1", body).await.expect(200).json();
    assert_eq!(again, json!({"id": "msg_1", "duplicate": true}), "also while the secret is rotated");
    let many = join_all((0..20).map(|_| send(&app, CRM, "msg_2", "{}"))).await;
    let new = many.into_iter().filter(|a| a.json()["duplicate"] == false).count();
    assert_eq!(new, 1, "twenty at once");
    assert_eq!(jobs_of(&app).await.len(), 2);
    app.run_pending_jobs().await;
    let done = jobs_of(&app).await;
    assert!(done.iter().all(|job| job.state == JobState::Completed), "{done:?}");
    assert_eq!(done[1].result.as_ref().unwrap()["type"], "contact.created");
    assert_eq!(send(&app, CRM, "msg_1", body).await.expect(200).json()["duplicate"], true, "days later too");
    assert_eq!(jobs_of(&app).await.len(), 2);
    let stored: Vec<u8> = sqlx::query_scalar("select body from webhook_event where event_id = 'msg_1'")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(stored, body.as_bytes(), "the bytes that were signed");
}

#[tokio::test]
async fn stripes_events_are_taken_by_stripes_signature() {
    let app = app().await;
    let body = r#"{"id":"evt_1","type":"ping.of.a.test","data":{"object":{}}}"#;
    assert_eq!(send_stripe(&app, STRIPE, body).await.expect(200).json()["id"], "evt_1");
    assert_eq!(send_stripe(&app, STRIPE, body).await.expect(200).json()["duplicate"], true);
    send_stripe(&app, "whsec_another_secret", body).await.problem(401, "invalid_signature");
    send_stripe(&app, STRIPE, "{}").await.problem(400, "invalid_webhook");
    assert_eq!(jobs_of(&app).await.len(), 1);
}

#[tokio::test]
async fn what_is_not_signed_as_it_should_be_is_refused_and_leaves_nothing() {
    let app = app().await;
    let anonymous = app.anonymous();
    let post = |path: &str| anonymous.request(Method::POST, path);
    anonymous.send(post("/v1/webhooks/crm").body("{}")).await.problem(400, "invalid_webhook");
    anonymous.send(post("/v1/webhooks/stripe").body("{}")).await.problem(400, "invalid_webhook");
    let refused = send(&app, "whsec_bm90IHRoZSByaWdodCBzZWNyZXQgYXQgYWxsIQ==", "msg_1", "{}").await;
    let refused = refused.problem(401, "invalid_signature");
    assert_eq!(refused.header("www-authenticate"), "Signature");
    for unknown in ["nobody", "CRM", "crm%00", "..%2f"] {
        anonymous.send(post(&format!("/v1/webhooks/{unknown}")).body("{}")).await.problem(404, "not_found");
    }
    let large = send(&app, CRM, "msg_1", &"x".repeat(256 * 1024 + 1)).await;
    large.problem(413, "body_too_large");
    let now = app.clock.now().timestamp();
    let signature = webhooks::standard::sign(&CRM.parse().unwrap(), "msg_1", now, b"{}");
    let signed = || {
        post("/v1/webhooks/crm")
            .header("webhook-id", "msg_1")
            .header("webhook-timestamp", now)
            .header("webhook-signature", signature.clone())
    };
    anonymous
        .send(signed().header("content-encoding", "gzip").body("{}"))
        .await
        .problem(415, "unsupported_encoding");
    app.advance_clock(TimeDelta::seconds(302));
    anonymous.send(signed().body("{}")).await.problem(401, "invalid_signature");
    assert!(jobs_of(&app).await.is_empty());
    let stored: i64 = sqlx::query_scalar("select count(*) from webhook_event")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(stored, 0);
}

#[tokio::test]
async fn a_body_that_is_no_json_is_kept_and_its_job_given_up_with_the_reason() {
    let app = app().await;
    send(&app, CRM, "msg_1", "not json").await.expect(200);
    app.run_pending_jobs().await;
    let job = &jobs_of(&app).await[0];
    assert_eq!((job.state, job.attempt), (JobState::Discarded, 1), "{job:?}");
}

#[tokio::test]
async fn without_a_secret_there_are_no_webhooks() {
    let app = TestApp::start().await;
    send(&app, CRM, "msg_1", "{}").await.problem(404, "not_found");
    send_stripe(&app, STRIPE, r#"{"id":"evt_1"}"#).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_genuine_sender_is_not_limited_and_everybody_else_is() {
    let secrets = format!("crm={CRM}");
    let app = TestApp::with(&[("WEBHOOK_SECRETS", &secrets), ("RATE_LIMIT_GLOBAL", "3/15m")]).await;
    for n in 0..10 {
        send(&app, CRM, &format!("msg_{n}"), "{}").await.expect(200);
    }
    let wrong = "whsec_bm90IHRoZSByaWdodCBzZWNyZXQgYXQgYWxsIQ==";
    for _ in 0..3 {
        send(&app, wrong, "msg_x", "{}").await.problem(401, "invalid_signature");
    }
    send(&app, wrong, "msg_x", "{}").await.problem(429, "rate_limited");
    send(&app, CRM, "msg_y", "{}").await.expect(200);
}

#[tokio::test]
async fn an_event_is_not_acknowledged_before_it_is_stored() {
    let app = app().await;
    sqlx::query("alter table webhook_event rename to webhook_event_gone")
        .execute(app.database.pool())
        .await
        .unwrap();
    send(&app, CRM, "msg_1", "{}").await.problem(500, "internal");
    sqlx::query("alter table webhook_event_gone rename to webhook_event")
        .execute(app.database.pool())
        .await
        .unwrap();
    assert!(jobs_of(&app).await.is_empty(), "no job of an event that is not there");
    assert_eq!(send(&app, CRM, "msg_1", "{}").await.expect(200).json()["duplicate"], false);
}
