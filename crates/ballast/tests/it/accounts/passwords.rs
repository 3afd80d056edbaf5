//! Forgotten and changed passwords.

use serde_json::{Value, json};

use super::{audited, count, login, mails, refresh, reset_token};
use crate::support::{Answer, PASSWORD, Persona, TestApp};

const NEW: &str = "another password";

async fn reset(app: &TestApp, token: &str, password: &str) -> Answer {
    app.anonymous().post("/v1/auth/password/reset", json!({ "token": token, "password": password })).await
}

async fn change(user: &Persona, current: &str, new: &str) -> Answer {
    user.post("/v1/auth/password", json!({ "current_password": current, "new_password": new })).await
}

#[tokio::test]
async fn a_forgotten_password_is_reset_once_and_every_session_ends_on_every_replica() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    let elsewhere = app.log_in(&user.email).await;
    let bystander = app.user().await;
    elsewhere.at(&other).get("/v1/me").await.expect(200);
    let token = reset_token(&app, &user.email).await;
    reset(&app, &token, NEW).await.expect(204);

    for session in [&user, &elsewhere] {
        session.get("/v1/me").await.problem(401, "revoked");
        session.at(&other).get("/v1/me").await.problem(401, "revoked");
        assert_eq!(refresh(&other, &session.refresh_token).await.0, 401);
    }
    bystander.get("/v1/me").await.expect(200);
    assert_eq!(login(&app, &user.email, PASSWORD).await.0, 401);
    let (status, tokens) = login(&other, &user.email, NEW).await;
    assert_eq!(status, 200);
    let back = app.anonymous().with_token(tokens["access_token"].as_str().unwrap());
    assert_eq!(back.get("/v1/me").await.expect(200).json()["email_verified"], true, "the mail was read");

    reset(&app, &token, "yet another one").await.problem(403, "invalid_one_time_token");
    assert_eq!(
        (audited(&app, "password_reset_requested").await, audited(&app, "password_reset").await),
        (1, 1)
    );
}

#[tokio::test]
async fn an_old_mail_ends_with_a_newer_one_and_with_a_change_of_the_password() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let (old, new) = (reset_token(&app, &user.email).await, reset_token(&app, &user.email).await);
    assert_ne!(old, new);
    reset(&app, &old, NEW).await.problem(403, "invalid_one_time_token");
    change(&user, PASSWORD, NEW).await.expect(204);
    reset(&app, &new, NEW).await.problem(403, "invalid_one_time_token");
}

#[tokio::test]
async fn a_disabled_account_gets_no_mail_and_its_token_ends() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let token = reset_token(&app, &user.email).await;
    sqlx::query("update users set disabled_at = now()").execute(app.database.pool()).await.unwrap();
    reset(&app, &token, NEW).await.problem(403, "invalid_one_time_token");
    app.anonymous().post("/v1/auth/password/forgot", json!({ "email": user.email })).await.expect(202);
    app.run_pending_jobs().await;
    assert_eq!(count(&app, "one_time_token where purpose = 'reset_password'").await, 1);
}

/// That nobody learns from it whether there is an account: `abuse::mail_timing`.
#[tokio::test]
async fn a_forgotten_password_is_mailed_to_accounts_only_and_five_times_an_hour() {
    let app = TestApp::with(&[("RATE_LIMIT_ACCOUNT_MAIL", "1000/1h")]).await;
    let user = app.user().await;
    for _ in 0..7 {
        for email in [user.email.as_str(), "nobody@example.com"] {
            app.anonymous().post("/v1/auth/password/forgot", json!({ "email": email })).await.expect(202);
        }
    }
    let mails = mails(&app).await;
    assert_eq!(mails.len(), 5, "to the one account, however often they were asked for: {mails:?}");
    assert!(mails.iter().all(|mail| mail["to"] == user.email.as_str()), "{mails:?}");
}

/// Case A11, where a password is set.
#[tokio::test]
async fn the_rules_of_passwords_hold_wherever_one_is_set() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "1000/1h"), ("RATE_LIMIT_REFRESH", "1000/1h")]).await;
    let user = app.user().await;
    let token = reset_token(&app, &user.email).await;
    let quoted = |text: &str| Value::from(text).to_string();
    let passwords: Vec<(String, u16)> = vec![
        (quoted("7 chars"), 422),
        (quoted(&"x".repeat(129)), 422),
        (quoted(&"\u{e9}".repeat(129)), 422),
        (quoted(&"x".repeat(1_048_576)), 413),
        (quoted("nul \0 inside"), 422),
        (r#""lone \ud800 surrogate""#.to_owned(), 400),
        ("12345678".to_owned(), 422),
        ("null".to_owned(), 422),
    ];
    let places = [
        ("/v1/auth/register", r#"{"email":"new@example.com","password":"#.to_owned()),
        ("/v1/auth/password/reset", format!(r#"{{"token":"{token}","password":"#)),
        ("/v1/auth/password", format!(r#"{{"current_password":"{PASSWORD}","new_password":"#)),
    ];
    for (path, begin) in &places {
        for (password, status) in &passwords {
            let request =
                user.request(reqwest::Method::POST, path).header("content-type", "application/json");
            let answer = user.send(request.body(format!("{begin}{password}}}"))).await;
            let shown: String = password.chars().take(30).collect();
            assert_eq!(answer.status, *status, "{path} {shown}: {}", answer.text);
        }
    }
    let too_long = "x".repeat(129);
    change(&user, &too_long, NEW).await.problem(422, "invalid");
    assert_eq!(login(&app, &user.email, PASSWORD).await.0, 200, "nothing has changed");

    // Composed and decomposed are one password, in whichever form it was set.
    reset(&app, &token, "cafe\u{301} au lait").await.expect(204);
    let (status, tokens) = login(&app, &user.email, "caf\u{e9} au lait").await;
    assert_eq!(status, 200);
    let user = app.anonymous().with_token(tokens["access_token"].as_str().unwrap());
    change(&user, "caf\u{e9} au lait", &"\u{e9}".repeat(128)).await.expect(204);
}

#[tokio::test]
async fn a_common_password_is_refused_where_one_is_chosen() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let token = reset_token(&app, &user.email).await;
    let name = user.email.split_once('@').unwrap().0;
    for (email, guess) in [
        ("new@example.com", "password1"),
        ("new@example.com", "ILoveYou!"),
        ("new@example.com", "Ballast2026!"),
        ("neighbour@example.com", "Neighbour1"),
        ("new@example.com", "NEW@example.com"),
    ] {
        let body = json!({ "email": email, "password": guess });
        let answer = app.anonymous().post("/v1/auth/register", body).await;
        let problem = answer.problem(422, "password_too_common").json();
        assert_eq!(problem["errors"][0]["field"], "password", "{guess}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("choose one"), "{guess}: {problem}");
    }
    for guess in ["password1", "Ballast2026!", &format!("{name}-{name}"), &user.email] {
        reset(&app, &token, guess).await.problem(422, "password_too_common");
        let problem = change(&user, PASSWORD, guess).await.problem(422, "password_too_common").json();
        assert_eq!(problem["errors"][0]["field"], "new_password", "{guess}: {problem}");
    }
    assert_eq!(login(&app, &user.email, PASSWORD).await.0, 200, "nothing has changed");
    reset(&app, &token, NEW).await.expect(204);

    // Who has one since before logs in as ever.
    let hash = api::auth::hash_password("password1").unwrap();
    let weak = "weak@example.com";
    let insert = async |c: &mut _| db::users::insert(c, uuid::Uuid::now_v7(), weak, &hash, "user").await;
    app.state.database.call::<_, db::Error>("test", insert).await.unwrap();
    assert_eq!(login(&app, weak, "password1").await.0, 200);
}

#[tokio::test]
async fn a_changed_password_ends_the_other_sessions_and_not_this_one() {
    let app = TestApp::start().await;
    let replica = app.replica();
    let user = app.user().await;
    let other = app.log_in(&user.email).await;
    change(&user, PASSWORD, NEW).await.expect(204);
    user.at(&replica).get("/v1/me").await.expect(200);
    assert_eq!(refresh(&replica, &user.refresh_token).await.0, 200);
    other.at(&replica).get("/v1/me").await.problem(401, "revoked");
    assert_eq!(refresh(&app, &other.refresh_token).await.0, 401);
    assert_eq!(
        (login(&app, &user.email, PASSWORD).await.0, login(&app, &user.email, NEW).await.0),
        (401, 200)
    );
    let detail: Value = sqlx::query_scalar("select detail from audit_log where event = 'password_changed'")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(detail, json!({ "sessions_ended": 1 }));
    app.anonymous().post("/v1/auth/password", json!({})).await.problem(401, "missing_credentials");
}

#[tokio::test]
async fn a_wrong_current_password_changes_nothing_and_cannot_be_guessed() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "5/15m")]).await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    change(&key, PASSWORD, NEW).await.problem(403, "session_required");
    for _ in 0..4 {
        change(&user, "guess guess", NEW).await.problem(403, "wrong_password");
    }
    change(&user, PASSWORD, NEW).await.problem(429, "rate_limited");
    assert_eq!(
        (audited(&app, "password_change_refused").await, audited(&app, "password_changed").await),
        (4, 0)
    );
    assert_eq!(login(&app, &user.email, PASSWORD).await.0, 200);
}
