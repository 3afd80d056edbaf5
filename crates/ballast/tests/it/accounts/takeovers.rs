//! What somebody tries who wants to get into an account, to stay in one, or to come back.

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::json;

use super::{audited, count, login, mails, operator, refresh, reset_token};
use crate::support::{PASSWORD, Persona, TestApp, insert_unconfirmed_user};

const NEW: &str = "another password";

/// `password`, hashed with less memory than ours: as an older release might have stored it.
const WEAKER: &str = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

async fn execute(app: &TestApp, sql: &'static str, text: &str) {
    sqlx::query(sql).bind(text).execute(app.database.pool()).await.unwrap();
}

async fn reset(app: &TestApp, token: &str, password: &str) {
    let body = json!({ "token": token, "password": password });
    app.anonymous().post("/v1/auth/password/reset", body).await.expect(204);
}

/// A key, a credential and an endpoint for webhooks: what outlives a session.
async fn settle_in(app: &TestApp, user: &Persona) -> Persona {
    let credential = json!({ "name": "mine", "provider": "openai", "secret": "sk-not-a-real-one" });
    user.post("/v1/credentials", credential).await.expect(201);
    let endpoint = json!({ "url": "https://hooks.example.com/in", "event_types": ["ping"] });
    user.post("/v1/webhook-endpoints", endpoint).await.expect(201);
    app.api_key(user, &["ai", "jobs"]).await
}

async fn what_is_left(app: &TestApp) -> (i64, i64, i64) {
    let keys = count(app, "api_key where revoked_at is null").await;
    (keys, count(app, "credential").await, count(app, "webhook_endpoint").await)
}

/// "Classic-federated merge" and "trojan identifier" of pre-hijacking (Sudhodanan and Paverd, USENIX Security 2022).
#[tokio::test]
async fn whoever_registered_with_somebody_elses_address_has_nothing_left_when_its_owner_comes() {
    let app = TestApp::start().await;
    let other = app.replica();
    // As accounts were before registration took a mail, and as `ballast user create` makes them.
    let email = "victim@example.com";
    insert_unconfirmed_user(app.database.pool(), email, "user").await;
    let thief = app.session(email).await;
    let key = settle_in(&app, &thief).await;
    key.at(&other).get("/v1/me").await.expect(200);
    assert_eq!(what_is_left(&app).await, (1, 1, 1));

    let token = reset_token(&app, &thief.email).await;
    reset(&app, &token, NEW).await;
    assert_eq!(what_is_left(&app).await, (0, 0, 0));
    for replica in [&app, &other] {
        key.at(replica).get("/v1/me").await.problem(401, "invalid_token");
        thief.at(replica).get("/v1/me").await.problem(401, "revoked");
    }
    assert_eq!(refresh(&app, &thief.refresh_token).await.0, 401);
    let detail: serde_json::Value =
        sqlx::query_scalar("select detail from audit_log where event = 'password_reset'")
            .fetch_one(app.database.pool())
            .await
            .unwrap();
    assert_eq!(detail["api_keys_revoked"], 1, "{detail}");

    // The owner has proven the address: what is made from now on is the owner's, and a forgotten password costs none of it.
    let owner =
        app.anonymous().with_token(login(&app, &thief.email, NEW).await.1["access_token"].as_str().unwrap());
    let key = settle_in(&app, &owner).await;
    let token = reset_token(&app, &thief.email).await;
    reset(&app, &token, "yet another password").await;
    assert_eq!(what_is_left(&app).await, (1, 1, 1));
    key.at(&other).get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn an_invitation_holds_as_long_as_its_maker_is_an_administrator() {
    let app = TestApp::with(&[("SIGNUP", "invite")]).await;
    let admin = operator(&app).await;
    let register = async |email: &str, token: &str| {
        let body = json!({ "email": email, "password": PASSWORD, "invitation_token": token });
        app.anonymous().post("/v1/auth/register", body).await
    };
    let invite = async |email: &str| {
        let body = json!({ "email": email, "role": "admin" });
        admin.post("/v1/admin/invitations", body).await.expect(201);
    };
    invite("ann@example.com").await;
    let token = app.mailed_token("ann@example.com").await;
    for (former, back) in [
        (
            "update users set role = 'user' where email = $1",
            "update users set role = 'admin' where email = $1",
        ),
        (
            "update users set disabled_at = now() where email = $1",
            "update users set disabled_at = null where email = $1",
        ),
    ] {
        execute(&app, former, &admin.email).await;
        register("ann@example.com", &token).await.problem(403, "invalid_invitation");
        execute(&app, back, &admin.email).await;
    }
    invite("bob@example.com").await;
    execute(&app, "update users set role = 'user' where email = $1", &admin.email).await;
    app.run_pending_jobs().await;
    assert_eq!(count(&app, "one_time_token where email = 'bob@example.com'").await, 0, "not even mailed");
    assert_eq!(count(&app, "users").await, 1);

    execute(&app, "update users set role = 'admin' where email = $1", &admin.email).await;
    register("ann@example.com", &token).await.expect(201);
    // An account that is gone can have been anybody's.
    let token = {
        invite("carol@example.com").await;
        app.mailed_token("carol@example.com").await
    };
    execute(&app, "delete from users where email = $1", &admin.email).await;
    register("carol@example.com", &token).await.problem(403, "invalid_invitation");
}

/// Password reset poisoning: the link of a mail must not lead where its asker wants.
#[tokio::test]
async fn a_mail_leads_where_the_configuration_says_whatever_host_the_request_names() {
    for (app_url, leads_to) in [
        ("", "POST https://api.example.com/v1/auth/password/reset"),
        ("https://app.example.com", "https://app.example.com/reset-password#token=ot_"),
    ] {
        let mut vars = vec![("PUBLIC_URL", "https://api.example.com")];
        if !app_url.is_empty() {
            vars.push(("APP_URL", app_url));
        }
        let app = TestApp::with(&vars).await;
        let user = app.user().await;
        let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/password/forgot");
        let request = request
            .header("host", "evil.example.net")
            .header("x-forwarded-host", "evil.example.net")
            .header("forwarded", "host=evil.example.net;proto=http")
            .header("origin", "https://evil.example.net")
            .header("referer", "https://evil.example.net/")
            .json(&json!({ "email": user.email }));
        app.anonymous().send(request).await.expect(202);
        let mail = mails(&app).await.remove(0)["text"].as_str().unwrap().to_owned();
        assert!(mail.contains(leads_to) && !mail.contains("evil"), "{mail}");
    }
}

/// A session is always a new one: nobody can plant one, by cookie or by token, and find it logged in later.
#[tokio::test]
async fn a_login_takes_over_no_session_that_was_brought_along() {
    let app = TestApp::start().await;
    let (thief, victim) = (app.user().await, app.user().await);
    let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/login");
    let request = request
        .header("cookie", format!("{}={}", api::auth::COOKIE, thief.refresh_token))
        .header("authorization", format!("Bearer {}", thief.token()))
        .header("origin", "http://localhost:8080")
        .json(&json!({ "email": victim.email, "password": PASSWORD, "cookie": true }));
    let answer = app.anonymous().send(request).await.expect(200);
    assert!(!answer.header("set-cookie").contains(&thief.refresh_token));
    let now = app.anonymous().with_token(answer.json()["access_token"].as_str().unwrap());
    assert!(![thief.session_id(), victim.session_id()].contains(&now.session_id()));
    let me = thief.get("/v1/me").await.expect(200).json();
    assert_eq!(me["email"], thief.email.as_str(), "the thief's session is the thief's");
}

/// Case A9. Neither status nor text nor the headers of the limit differ, up to and past the limit.
#[tokio::test]
async fn limits_tell_nobody_whether_there_is_an_account() {
    let app = TestApp::with(&[
        ("RATE_LIMIT_LOGIN", "3/1h"),
        ("RATE_LIMIT_ACCOUNT_MAIL", "3/1h"),
        ("TRUSTED_PROXY", "127.0.0.0/8"),
    ])
    .await;
    let user = app.user().await;
    let mut seen = Vec::new();
    for (address, email) in [("192.0.2.1", user.email.as_str()), ("192.0.2.2", "nobody@example.com")] {
        let caller = app.anonymous().behind(address);
        let mut answers = Vec::new();
        for path in ["/v1/auth/login", "/v1/auth/password/forgot"] {
            for _ in 0..5 {
                let mut body = json!({ "email": email });
                if path.ends_with("login") {
                    body["password"] = "a wrong guess".into();
                }
                let answer = caller.post(path, body).await;
                let mut problem = answer.json();
                problem["request_id"] = json!(null);
                let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
                names.sort_unstable();
                // How much is left of the limit that the account has. That of the address grows while one asks.
                let parts = answer.header("ratelimit").split(", ");
                let left: Vec<&str> =
                    parts.filter(|p| !p.contains("global")).filter_map(|p| p.split(";t=").next()).collect();
                let detail = problem["detail"].take();
                let told = if answer.status == 429 { json!(null) } else { detail };
                answers.push((answer.status, problem.to_string(), told, names, left.join(";")));
            }
        }
        seen.push(answers);
    }
    assert_eq!(seen[0], seen[1]);
    let statuses: Vec<u16> = seen[0].iter().map(|answer| answer.0).collect();
    assert_eq!(statuses, [401, 401, 401, 429, 429, 202, 202, 202, 429, 429]);
}

#[tokio::test]
async fn a_stranger_who_has_guessed_too_often_does_not_lock_the_owner_out() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "3/1h"), ("TRUSTED_PROXY", "127.0.0.0/8")]).await;
    let user = app.user().await;
    let stranger = app.anonymous().behind("192.0.2.1");
    let body = |password: &str| json!({ "email": user.email, "password": password });
    for _ in 0..3 {
        stranger.post("/v1/auth/login", body("a wrong guess")).await.problem(401, "invalid_credentials");
    }
    stranger.post("/v1/auth/login", body(PASSWORD)).await.problem(429, "rate_limited");
    app.anonymous().behind("192.0.2.2").post("/v1/auth/login", body(PASSWORD)).await.expect(200);
    user.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn a_session_ends_at_its_last_day_however_often_it_is_refreshed() {
    let app = TestApp::with(&[("SESSION_MAX_AGE", "90d"), ("REFRESH_TOKEN_TTL", "30d")]).await;
    let user = app.user().await;
    let mut token = user.refresh_token.clone();
    for day in (20..=80).step_by(20) {
        app.advance_clock(TimeDelta::days(20));
        let (status, tokens) = refresh(&app, &token).await;
        assert_eq!(status, 200, "day {day}: {tokens}");
        tokens["refresh_token"].as_str().unwrap().clone_into(&mut token);
    }
    app.advance_clock(TimeDelta::days(10) - TimeDelta::minutes(5));
    let (status, tokens) = refresh(&app, &token).await;
    assert_eq!(status, 200, "five minutes before the end: {tokens}");
    app.advance_clock(TimeDelta::minutes(5));
    let (status, tokens) = refresh(&app, tokens["refresh_token"].as_str().unwrap()).await;
    assert_eq!(status, 401, "{tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_of_weaker_parameters_is_renewed_by_the_login_and_locks_nobody_out() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "100/1h"), ("PASSWORD_HASH_CONCURRENCY", "8")]).await;
    let other = app.replica();
    let user = app.user().await;
    let hash = async || -> String {
        sqlx::query_scalar("select password_hash from users").fetch_one(app.database.pool()).await.unwrap()
    };
    execute(&app, "update users set password_hash = $1", WEAKER).await;
    assert_eq!(login(&app, &user.email, "a wrong guess").await.0, 401);
    assert_eq!(hash().await, WEAKER, "nobody knows the password yet");
    // All of them compare with the old hash, and one of them replaces it.
    let logins = (0..6).map(|i| login(if i % 2 == 0 { &app } else { &other }, &user.email, "password"));
    let statuses: Vec<u16> = join_all(logins).await.into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, [200; 6]);
    let renewed = hash().await;
    assert!(renewed.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{renewed}");
    assert_eq!(login(&app, &user.email, "password").await.0, 200);
    assert_eq!(hash().await, renewed, "once");
    assert_eq!(login(&app, &user.email, "a wrong guess").await.0, 401);
    assert_eq!(audited(&app, "login_failed").await, 2);
}

/// Case A1. Token confusion: what is good for one thing is good for nothing else.
#[tokio::test]
async fn no_token_opens_what_another_kind_of_token_opens() {
    let app = TestApp::with(&[("RATE_LIMIT_REFRESH", "1000/1h"), ("RATE_LIMIT_SIGNUP", "1000/1h")]).await;
    insert_unconfirmed_user(app.database.pool(), "user@example.com", "user").await;
    let (admin, user) = (operator(&app).await, app.session("user@example.com").await);
    let invited = "ann@example.com";
    admin.post("/v1/admin/invitations", json!({ "email": invited })).await.expect(201);
    let invitation = app.mailed_token(invited).await;
    let resend = user.request(reqwest::Method::POST, "/v1/auth/verify-email/resend");
    user.send(resend).await.expect(202);
    let verification = app.mailed_token(&user.email).await;
    let reset = reset_token(&app, &user.email).await;
    let key = app.api_key(&user, &["ai", "jobs"]).await.api_key_text().to_owned();
    let (access, renewal) = (user.token().to_owned(), user.refresh_token.clone());
    let all = [&access, &renewal, &verification, &reset, &invitation, &key];
    let post = async |path: &str, body| app.anonymous().post(path, body).await;
    for token in all {
        let bearer = app.anonymous().with_token(token).get("/v1/me").await;
        assert_eq!(bearer.status == 200, [&access, &key].contains(&token), "bearer {token}: {}", bearer.text);
        let request = app.anonymous().request(reqwest::Method::GET, "/v1/me").header("x-api-key", token);
        let header = app.anonymous().send(request).await;
        assert_eq!(header.status == 200, *token == key, "X-API-Key {token}: {}", header.text);
        if *token != renewal {
            app.anonymous().refresh(token).await.problem(401, "invalid_token");
            app.anonymous().logout(token).await.expect(204);
            let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/refresh");
            let cookie = format!("{}={token}", api::auth::COOKIE);
            let request = request.header("cookie", cookie).header("origin", "http://localhost:8080");
            app.anonymous().send(request).await.problem(401, "invalid_token");
        }
        if *token != verification {
            post("/v1/auth/verify-email", json!({ "token": token }))
                .await
                .problem(403, "invalid_one_time_token");
        }
        if *token != reset {
            let body = json!({ "token": token, "password": NEW });
            post("/v1/auth/password/reset", body).await.problem(403, "invalid_one_time_token");
        }
        if *token != invitation {
            let body = json!({ "email": invited, "password": PASSWORD, "invitation_token": token });
            post("/v1/auth/register", body).await.problem(403, "invalid_invitation");
        }
    }
    // None of them was used up by that, and the session lives.
    user.get("/v1/me").await.expect(200);
    app.anonymous().refresh(&renewal).await.expect(200);
    post("/v1/auth/verify-email", json!({ "token": verification })).await.expect(204);
    let body = json!({ "email": invited, "password": PASSWORD, "invitation_token": invitation });
    post("/v1/auth/register", body).await.expect(201);
    post("/v1/auth/password/reset", json!({ "token": reset, "password": NEW })).await.expect(204);
}
