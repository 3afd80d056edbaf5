//! Open sign-up: a mail, its token, a password. That the answers are alike, in time too: `abuse::mail_timing`.

use chrono::TimeDelta;
use serde_json::json;

use super::{audited, count, login, mails, reset_token};
use crate::support::{Answer, PASSWORD, Persona, TestApp, insert_user, mail_to, token_in};

const ANN: &str = "ann@example.com";

async fn sign_up(caller: &Persona, email: &str) -> Answer {
    caller.post("/v1/auth/sign-up", json!({ "email": email })).await
}

async fn register(app: &TestApp, email: &str, token: &str) -> Answer {
    let body = json!({ "email": email, "password": PASSWORD, "invitation_token": token });
    app.anonymous().post("/v1/auth/register", body).await
}

#[tokio::test]
async fn who_signs_up_is_told_by_mail_alone_whether_there_is_an_account() {
    let app = TestApp::start().await;
    let (known, disabled) = (app.user().await, app.user().await);
    let disable = sqlx::query("update users set disabled_at = now() where email = $1").bind(&disabled.email);
    disable.execute(app.database.pool()).await.unwrap();
    for email in [" Ann@Example.com ", &known.email, &disabled.email] {
        let answer = sign_up(&app.anonymous(), email).await.expect(202);
        assert!(!answer.text.contains("ot_"), "{}", answer.text);
    }
    let shown = mails(&app).await;
    let subject = |to: &str| shown.iter().find(|mail| mail["to"] == to).map(|mail| mail["subject"].clone());
    assert_eq!(subject(ANN), Some(json!("Finish your registration")));
    assert_eq!(subject(&known.email), Some(json!("You have an account already")));
    assert_eq!((shown.len(), subject(&disabled.email)), (2, None), "a disabled account is not written to");

    // Who has an account already may have come because the password is forgotten.
    let token = token_in(&mail_to(app.database.pool(), &known.email).await.unwrap());
    register(&app, &known.email, &token).await.problem(403, "invalid_invitation");
    let reset = json!({ "token": token, "password": "another password" });
    app.anonymous().post("/v1/auth/password/reset", reset).await.expect(204);
    assert_eq!(audited(&app, "password_reset_requested").await, 1);
    sign_up(&app.anonymous(), "nonsense").await.problem(422, "invalid");
}

#[tokio::test]
async fn the_token_of_a_sign_up_registers_its_address_once() {
    let app = TestApp::start().await;
    let without = json!({ "email": ANN, "password": PASSWORD });
    let refused = app.anonymous().post("/v1/auth/register", without).await;
    let refused = refused.problem(403, "invitation_required");
    assert!(refused.text.contains("/v1/auth/sign-up"), "it says where to begin: {}", refused.text);

    let token = app.sign_up_token(ANN).await;
    register(&app, "bob@example.com", &token).await.problem(403, "invalid_invitation");
    register(&app, ANN, &reset_token(&app, &app.user().await.email).await)
        .await
        .problem(403, "invalid_invitation");
    register(&app, " Ann@Example.com ", &token).await.expect(201);
    register(&app, ANN, &token).await.problem(403, "invalid_invitation");
    assert_eq!(login(&app, ANN, PASSWORD).await.0, 200);
    assert_eq!(audited(&app, "registered").await, 1);
}

#[tokio::test]
async fn the_token_of_a_sign_up_ends_with_its_time_a_newer_one_and_open_sign_up() {
    let app = TestApp::start().await;
    let (old, new) = (app.sign_up_token(ANN).await, app.sign_up_token(ANN).await);
    register(&app, ANN, &old).await.problem(403, "invalid_invitation");
    let by_invitation = app.replica_with(&[("SIGNUP", "invite")]);
    register(&by_invitation, ANN, &new).await.problem(403, "invalid_invitation");
    app.advance_clock(TimeDelta::hours(24) + TimeDelta::seconds(5));
    register(&app, ANN, &new).await.problem(403, "invalid_invitation");
    assert_eq!(count(&app, "users").await, 0);
}

/// Whoever asks, and from wherever.
#[tokio::test]
async fn a_mailbox_is_not_flooded_by_sign_ups_and_the_last_token_works() {
    let app = TestApp::with(&[("TRUSTED_PROXY", "127.0.0.0/8"), ("RATE_LIMIT_SIGNUP", "2/1h")]).await;
    let known = app.user().await;
    for i in 0..7 {
        let client = app.anonymous().behind(format!("192.0.2.{i}"));
        for email in [ANN, &known.email] {
            sign_up(&client, email).await.expect(202);
        }
        sign_up(&client, "bob@example.com").await.problem(429, "rate_limited");
    }
    let shown = mails(&app).await;
    for email in [ANN, &known.email] {
        assert_eq!(shown.iter().filter(|mail| mail["to"] == email).count(), 5, "{email}");
    }
    let token = token_in(&mail_to(app.database.pool(), ANN).await.unwrap());
    register(&app, ANN, &token).await.expect(201);
}

/// Pre-hijacking (Sudhodanan and Paverd, USENIX Security 2022), and what is left of asking whether there is an account: the
/// password of an account is chosen by whoever reads the mail of its address, and so is what there is to learn.
#[tokio::test]
async fn nobody_makes_an_account_or_learns_of_one_whose_mail_somebody_else_reads() {
    let app = TestApp::start().await;
    let thiefs = app.sign_up_token("thief@example.com").await;
    sign_up(&app.anonymous(), ANN).await.expect(202);
    let try_all = async || {
        let without = json!({ "email": ANN, "password": "the thief's password" });
        app.anonymous().post("/v1/auth/register", without).await.problem(403, "invitation_required");
        for token in [thiefs.as_str(), "", &format!("ot_{}", "A".repeat(43))] {
            register(&app, ANN, token).await.problem(403, "invalid_invitation");
        }
    };
    try_all().await;
    assert_eq!(count(&app, "users").await, 0);
    let token = app.mailed_token(ANN).await;
    // Somebody else was quicker: only who holds a token of this very address is told.
    insert_user(app.database.pool(), ANN, "user").await;
    try_all().await;
    register(&app, ANN, &token).await.problem(409, "email_taken");
}
