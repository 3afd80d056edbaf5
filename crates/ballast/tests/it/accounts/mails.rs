//! Mails with one-time tokens: to confirm an address, and where they are shown.

use std::time::Duration;

use chrono::TimeDelta;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{audited, count, mails, operator, reset_token};
use crate::support::{Answer, Persona, Process, TestApp, eventually, free_port, insert_unconfirmed_user};

async fn verify(app: &TestApp, token: &str) -> Answer {
    app.anonymous().post("/v1/auth/verify-email", json!({ "token": token })).await
}

/// Somebody whose address is not confirmed, as after `ballast user create`, and who has asked for the mail.
async fn unconfirmed(app: &TestApp) -> Persona {
    let email = "unconfirmed@example.com";
    insert_unconfirmed_user(app.database.pool(), email, "user").await;
    let user = app.session(email).await;
    resend(&user).await.expect(202);
    user
}

async fn resend(user: &Persona) -> Answer {
    user.send(user.request(reqwest::Method::POST, "/v1/auth/verify-email/resend")).await
}

async fn is_verified(user: &Persona) -> bool {
    user.get("/v1/me").await.expect(200).json()["email_verified"].as_bool().unwrap()
}

#[tokio::test]
async fn a_new_address_is_confirmed_once_with_the_mailed_token() {
    let app = TestApp::start().await;
    let user = unconfirmed(&app).await;
    assert!(!is_verified(&user).await);
    let token = app.mailed_token(&user.email).await;
    let wrong_purpose = reset_token(&app, &user.email).await;
    for bad in ["", "ot_x", &wrong_purpose, &format!("ot_{}", "A".repeat(43)), &token.replace("ot_", "rt_")] {
        verify(&app, bad).await.problem(403, "invalid_one_time_token");
    }
    assert!(!is_verified(&user).await);
    verify(&app, &token).await.expect(204);
    assert!(is_verified(&user).await);
    verify(&app, &token).await.problem(403, "invalid_one_time_token");
    assert_eq!(audited(&app, "email_verified").await, 1);
}

#[tokio::test]
async fn the_mail_comes_again_when_asked_for_and_ends_the_token_before() {
    let app = TestApp::with(&[("RATE_LIMIT_ACCOUNT_MAIL", "3/1h")]).await;
    let user = unconfirmed(&app).await;
    let first = app.mailed_token(&user.email).await;
    resend(&user).await.expect(202);
    let second = app.mailed_token(&user.email).await;
    verify(&app, &first).await.problem(403, "invalid_one_time_token");
    verify(&app, &second).await.expect(204);
    resend(&user).await.expect(202);
    assert_eq!(mails(&app).await.len(), 2, "a confirmed address gets no mail");
    resend(&user).await.problem(429, "rate_limited");
    app.anonymous().post("/v1/auth/verify-email/resend", json!({})).await.problem(401, "missing_credentials");
}

#[tokio::test]
async fn a_mailed_token_ends_with_its_time() {
    let app = TestApp::start().await;
    let user = unconfirmed(&app).await;
    let (verification, reset) = (app.mailed_token(&user.email).await, reset_token(&app, &user.email).await);
    app.advance_clock(TimeDelta::hours(1) + TimeDelta::seconds(5));
    let body = json!({ "token": reset, "password": "another password" });
    app.anonymous().post("/v1/auth/password/reset", body).await.problem(403, "invalid_one_time_token");
    app.advance_clock(TimeDelta::hours(23));
    verify(&app, &verification).await.problem(403, "invalid_one_time_token");
}

#[tokio::test]
async fn a_mailbox_is_not_flooded_and_its_last_token_works() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let mut token = String::new();
    for _ in 0..7 {
        token = reset_token(&app, &user.email).await;
    }
    assert_eq!(count(&app, "one_time_token where purpose = 'reset_password'").await, 5);
    let body = json!({ "token": token, "password": "another password" });
    app.anonymous().post("/v1/auth/password/reset", body).await.expect(204);
}

#[tokio::test]
async fn mails_are_shown_to_administrators_in_development_alone() {
    let app = TestApp::start().await;
    let user = app.user().await;
    reset_token(&app, &user.email).await;
    assert_eq!(mails(&app).await[0]["to"], user.email.as_str());
    user.get("/v1/admin/mails").await.problem(403, "admin_required");
    app.anonymous().get("/v1/admin/mails").await.problem(401, "missing_credentials");

    let with_provider = TestApp::with(&[("RESEND_API_KEY", "re_x")]).await;
    operator(&with_provider).await.get("/v1/admin/mails").await.problem(404, "not_found");

    for environment in ["staging", "production"] {
        let mut vars = deployed(environment);
        vars.push(("SIGNUP", "open"));
        let app = TestApp::with(&vars).await;
        let user = app.user().await;
        let new = json!({ "email": "new@example.com" });
        app.anonymous().post("/v1/auth/sign-up", new).await.expect(202);
        app.anonymous().post("/v1/auth/password/forgot", json!({ "email": user.email })).await.expect(202);
        assert!(app.run_pending_jobs().await >= 2);
        operator(&app).await.get("/v1/admin/mails").await.problem(404, "not_found");
        assert_eq!(count(&app, "one_time_token").await, 2, "the tokens were made");
        let jobs: Vec<String> = sqlx::query_scalar("select j::text from job_done j")
            .fetch_all(app.database.pool())
            .await
            .unwrap();
        assert!(!jobs.concat().contains("ot_"), "and are in no job: {jobs:?}");
    }
}

/// What a deployment must have, beside its stores.
fn deployed(environment: &str) -> Vec<(&str, &str)> {
    vec![
        ("APP_ENV", environment),
        ("PUBLIC_URL", "https://api.example.com"),
        ("TRUSTED_PROXY", "none"),
        ("JWT_SIGNING_KEY", "k1:x4cUM5pZ3sJ0bq2g1Xw9mF7uQe8yRtVnLkHdSaPoIuY"),
        ("CHANNEL_ENCRYPTION_KEY", "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"),
        ("SERVER_SECRET", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
    ]
}

/// Whoever reads a log must not be able to take over accounts, but for developers on their own machines.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_in_the_log_of_development_and_in_no_other() {
    for (environment, shown) in [("development", true), ("staging", false), ("production", false)] {
        let app = TestApp::start().await;
        let user = app.user().await;
        let new = json!({ "email": "new@example.com" });
        app.anonymous().post("/v1/auth/sign-up", new).await.expect(202);
        app.anonymous().post("/v1/auth/password/forgot", json!({ "email": user.email })).await.expect(202);
        let port = free_port().to_string();
        let mut vars = deployed(environment);
        vars.extend([
            ("PORT", port.as_str()),
            ("HOST", "127.0.0.1"),
            ("DATABASE_URL", app.database.url()),
            ("REDIS_URL", app.redis.url.as_str()),
            ("ENGINE_URL", "http://127.0.0.1:1/v1"),
            ("LOG_FORMAT", "pretty"),
            ("LOG_LEVEL", "debug"),
        ]);
        let mut worker = Process::start(&["worker"], &vars);
        eventually("both mails", Duration::from_secs(20), async || {
            count(&app, "job_done where kind = 'account_mail'").await == 2
        })
        .await;
        worker.signal(Signal::SIGTERM);
        worker.wait(Duration::from_secs(20)).await;
        let output = worker.output();
        assert_eq!(output.contains("ot_"), shown, "{environment}: {output}");
        assert_eq!(output.contains(&user.email), shown, "{environment}: {output}");
        assert_eq!(
            output.contains("mails are dropped: set RESEND_API_KEY"),
            !shown,
            "{environment}: {output}"
        );
    }
}
