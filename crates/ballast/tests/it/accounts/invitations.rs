//! Sign-up by invitation.

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{audited, count, mails, operator};
use crate::support::{Answer, PASSWORD, TestApp};

const INVITE: &[(&str, &str)] = &[("SIGNUP", "invite")];

async fn register(app: &TestApp, email: &str, token: Option<&str>) -> Answer {
    let mut body = json!({ "email": email, "password": PASSWORD });
    if let Some(token) = token {
        body["invitation_token"] = token.into();
    }
    app.anonymous().post("/v1/auth/register", body).await
}

async fn invite(app: &TestApp, email: &str, role: &str) -> String {
    let body = json!({ "email": email, "role": role });
    let made = operator(app).await.post("/v1/admin/invitations", body).await.expect(201);
    assert!(!made.text.contains("ot_"), "the token is in the mail alone");
    made.json()["id"].as_str().unwrap().to_owned()
}

async fn status_of(app: &TestApp, id: &str) -> String {
    let list = operator(app).await.get("/v1/admin/invitations").await.expect(200).json();
    let found = list["data"].as_array().unwrap().iter().find(|i| i["id"] == id).unwrap().clone();
    found["status"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_invitation_registers_its_address_once_with_its_role() {
    let app = TestApp::with(INVITE).await;
    register(&app, "ann@example.com", None).await.problem(403, "invitation_required");
    let id = invite(&app, " Ann@Example.com ", "admin").await;
    let token = app.mailed_token("ann@example.com").await;
    assert_eq!(status_of(&app, &id).await, "open");

    register(&app, "bob@example.com", Some(&token)).await.problem(403, "invalid_invitation");
    for nonsense in ["", "ot_x", &token.replace("ot_", "rt_"), &format!("ot_{}", "A".repeat(43))] {
        register(&app, "ann@example.com", Some(nonsense)).await.problem(403, "invalid_invitation");
    }
    register(&app, "ann@example.com", Some(&token)).await.expect(201);
    register(&app, "ann@example.com", Some(&token)).await.problem(403, "invalid_invitation");
    assert_eq!(status_of(&app, &id).await, "accepted");

    let me = app.log_in("ann@example.com").await.get("/v1/me").await.expect(200).json();
    assert_eq!((&me["role"], &me["email_verified"]), (&json!("admin"), &json!(true)));
    assert_eq!(mails(&app).await.len(), 1, "who was invited need not confirm the address");
    let registered: Value = sqlx::query_scalar("select detail from audit_log where event = 'registered'")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(registered, json!({ "role": "admin", "invitation_id": id }));
    assert_eq!(audited(&app, "invitation_created").await, 1);
}

/// Case A7.
#[tokio::test(flavor = "multi_thread")]
async fn one_invitation_makes_one_account_however_many_try_at_once() {
    let app = TestApp::with(INVITE).await;
    let other = app.replica();
    invite(&app, "ann@example.com", "user").await;
    let token = app.mailed_token("ann@example.com").await;
    let tries =
        (0..20).map(|i| register(if i % 2 == 0 { &app } else { &other }, "ann@example.com", Some(&token)));
    let answers = join_all(tries).await;
    let made = answers.iter().filter(|a| a.status == 201).count();
    let refused = answers.iter().filter(|a| a.status == 403).count();
    // Hashing has two turns at a time; who waits too long is told to come again.
    let busy = answers.iter().filter(|a| a.status == 503).count();
    assert_eq!((made, refused + busy), (1, 19), "{answers:?}");
    assert_eq!(count(&app, "users where email = 'ann@example.com'").await, 1);
    assert_eq!(audited(&app, "registered").await, 1);
}

#[tokio::test]
async fn an_invitation_ends_when_it_is_taken_back_replaced_or_old() {
    let app = TestApp::with(INVITE).await;
    let admin = operator(&app).await;
    let taken_back = invite(&app, "ann@example.com", "user").await;
    let token = app.mailed_token("ann@example.com").await;
    let path = format!("/v1/admin/invitations/{taken_back}");
    admin.delete(&path).await.expect(204);
    admin.delete(&path).await.problem(404, "not_found");
    admin
        .delete("/v1/admin/invitations/00000000-0000-7000-8000-000000000000")
        .await
        .problem(404, "not_found");
    register(&app, "ann@example.com", Some(&token)).await.problem(403, "invalid_invitation");
    assert_eq!(
        (status_of(&app, &taken_back).await.as_str(), audited(&app, "invitation_revoked").await),
        ("revoked", 1)
    );

    let replaced = invite(&app, "bob@example.com", "user").await;
    let old = app.mailed_token("bob@example.com").await;
    let newer = invite(&app, "bob@example.com", "user").await;
    let new = app.mailed_token("bob@example.com").await;
    assert_ne!(old, new);
    register(&app, "bob@example.com", Some(&old)).await.problem(403, "invalid_invitation");
    assert_eq!(
        (status_of(&app, &replaced).await, status_of(&app, &newer).await),
        ("revoked".into(), "open".into())
    );

    app.advance_clock(TimeDelta::days(7) + TimeDelta::seconds(5));
    register(&app, "bob@example.com", Some(&new)).await.problem(403, "invalid_invitation");
    assert_eq!(status_of(&app, &newer).await, "expired");
}

#[tokio::test]
async fn a_revoked_invitation_that_waits_for_the_mail_is_never_mailed() {
    let app = TestApp::with(INVITE).await;
    let id = invite(&app, "ann@example.com", "user").await;
    operator(&app).await.delete(&format!("/v1/admin/invitations/{id}")).await.expect(204);
    assert_eq!(mails(&app).await.len(), 0);
    assert_eq!(count(&app, "one_time_token").await, 0);
}

#[tokio::test]
async fn only_administrators_invite_and_only_whom_they_can() {
    let app = TestApp::start().await;
    let (admin, user) = (operator(&app).await, app.user().await);
    let path = "/v1/admin/invitations";
    let body = json!({ "email": "ann@example.com" });
    app.anonymous().post(path, body.clone()).await.problem(401, "missing_credentials");
    user.post(path, body.clone()).await.problem(403, "admin_required");
    app.api_key(&admin, &["ai"]).await.post(path, body.clone()).await.problem(403, "session_required");
    for wrong in [
        json!({ "email": "nonsense" }),
        json!({ "email": "ann@example.com", "role": "root" }),
        json!({ "email": "ann@example.com", "password": "x" }),
        json!({}),
    ] {
        admin.post(path, wrong).await.problem(422, "invalid");
    }
    admin.post(path, json!({ "email": user.email })).await.problem(409, "email_taken");
    assert_eq!(count(&app, "invitation").await, 0);
    assert_eq!(admin.post(path, body.clone()).await.expect(201).json()["role"], "user");

    let closed = TestApp::with(&[("SIGNUP", "closed")]).await;
    let admin = operator(&closed).await;
    admin.post(path, body).await.problem(409, "signup_closed");
    register(&closed, "ann@example.com", Some("ot_x")).await.problem(403, "signup_closed");
}
