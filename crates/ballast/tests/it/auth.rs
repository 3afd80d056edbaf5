//! Registration, login, refresh, logout.

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::{PASSWORD, TestApp};

async fn refresh(app: &TestApp, token: &str) -> (u16, Value) {
    let answer = app.anonymous().post("/v1/auth/refresh", json!({ "refresh_token": token })).await;
    (answer.status, serde_json::from_str(&answer.text).unwrap_or_default())
}

async fn logout(app: &TestApp, token: &str) {
    app.anonymous().post("/v1/auth/logout", json!({ "refresh_token": token })).await.expect(204);
}

#[tokio::test]
async fn a_new_user_registers_logs_in_and_is_recognised() {
    let app = TestApp::start().await;
    app.register("ann@example.com", PASSWORD).await.expect(201);
    let me = app.log_in("ann@example.com").await.get("/v1/me").await.expect(200).json();
    assert_eq!((&me["email"], &me["role"]), (&json!("ann@example.com"), &json!("user")));
    assert_eq!(me["email_verified"], true, "the token came by mail");
}

#[tokio::test]
async fn sign_up_can_be_closed() {
    let app = TestApp::with(&[("SIGNUP", "closed")]).await;
    let body = json!({ "email": "a@example.com", "password": "long enough" });
    app.anonymous().post("/v1/auth/register", body).await.problem(403, "signup_closed");
    let body = json!({ "email": "a@example.com" });
    app.anonymous().post("/v1/auth/sign-up", body.clone()).await.problem(403, "signup_closed");
    let by_invitation = TestApp::with(&[("SIGNUP", "invite")]).await;
    by_invitation.anonymous().post("/v1/auth/sign-up", body).await.problem(403, "invitation_required");
    for app in [&app, &by_invitation] {
        assert_eq!(app.run_pending_jobs().await, 0, "nobody is written to");
    }
}

/// Case A9.
#[tokio::test]
async fn wrong_password_unknown_and_disabled_users_are_refused_in_the_same_words() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let disabled = app.user().await;
    sqlx::query("update users set disabled_at = now() where email = $1")
        .bind(&disabled.email)
        .execute(app.database.pool())
        .await
        .unwrap();
    let mut answers = Vec::new();
    for (email, password) in [
        (user.email.as_str(), "wrong password"),
        ("nobody@example.com", "wrong password"),
        (disabled.email.as_str(), PASSWORD),
    ] {
        let answer =
            app.anonymous().post("/v1/auth/login", json!({ "email": email, "password": password })).await;
        let mut body = answer.problem(401, "invalid_credentials").json();
        body["request_id"] = Value::Null;
        answers.push(body);
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
}

#[tokio::test]
async fn a_failed_login_is_a_security_event() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "3/1h")]).await;
    let (admin, user) = (app.admin().await, app.user().await);
    let id = user.get("/v1/me").await.expect(200).json()["id"].clone();
    let stranger = app.anonymous();
    let guess = async |email: &str| {
        let body = json!({ "email": email, "password": "a wrong guess" });
        stranger.post("/v1/auth/login", body).await
    };
    let mut request_ids = Vec::new();
    for email in [user.email.as_str(), "nobody@example.com"] {
        let answer = guess(email).await.problem(401, "invalid_credentials");
        request_ids.push(answer.header("x-request-id").to_owned());
    }
    let failed = async || admin.get("/v1/admin/audit?event=login_failed").await.expect(200);
    let shown = failed().await;
    assert!(!shown.text.contains("guess") && !shown.text.contains("example.com"), "{}", shown.text);
    let events = shown.json()["data"].clone();
    let [unknown, known] = events.as_array().unwrap().as_slice() else { panic!("two: {events}") };
    assert_eq!((&known["user_id"], &unknown["user_id"]), (&id, &Value::Null));
    assert_eq!(known["detail"]["reason"], "wrong password");
    assert_eq!(unknown["detail"]["reason"], "unknown account");
    assert_ne!(known["detail"]["account"], unknown["detail"]["account"]);
    for (event, request_id) in [(known, &request_ids[0]), (unknown, &request_ids[1])] {
        assert_eq!((event["request_id"].as_str(), &event["ip"]), (Some(&**request_id), &json!("127.0.0.1")));
    }

    // No more than the limit lets through, and none for who gets in.
    for _ in 0..5 {
        guess("nobody@example.com").await;
    }
    guess("nobody@example.com").await.problem(429, "rate_limited");
    app.log_in(&user.email).await;
    let events = failed().await.json()["data"].as_array().unwrap().len();
    assert_eq!(events, 4, "three of nobody, one of somebody");
}

/// Cases A11 and H5.
#[tokio::test]
async fn no_body_whatever_makes_a_5xx() {
    let app = TestApp::start().await;
    let deep = "[".repeat(10_000);
    let long = format!(r#"{{"email":"a@example.com","password":"{}"}}"#, "x".repeat(129));
    let huge = format!(r#"{{"email":"a@example.com","password":"{}"}}"#, "x".repeat(1_000_000));
    let bodies: Vec<(&[u8], u16)> = vec![
        (b"", 400),
        (b"{", 400),
        (b"null", 422),
        (b"[]", 422),
        (b"{\"email\":1,\"password\":2}", 422),
        (b"{\"email\":\"a@example.com\"}", 422),
        (b"{\"email\":\"a@example.com\",\"password\":\"short\"}", 422),
        (b"{\"email\":\"not an address\",\"password\":\"long enough\"}", 422),
        (b"{\"email\":\"a\\u0000@example.com\",\"password\":\"long enough\"}", 422),
        (b"{\"email\":\"a@example.com\",\"password\":\"nul \\u0000 inside\"}", 422),
        (b"{\"email\":\"a@example.com\",\"password\":\"\\ud800 lone surrogate\"}", 400),
        (b"{\"email\":\"a@example.com\",\"password\":\"long enough\",\"role\":\"admin\"}", 422),
        (b"{\"email\":\"a@example.com\",\"email\":\"b@example.com\",\"password\":\"long enough\"}", 422),
        (b"\xff\xfe{\x00}\x00", 400),
        (b"\xef\xbb\xbf{}", 400),
        (b"{\"email\":NaN}", 400),
        (b"{\"email\":\"\xff\"}", 400),
        (deep.as_bytes(), 413),
        (&deep.as_bytes()[..4_000], 422),
        (long.as_bytes(), 422),
        (huge.as_bytes(), 413),
    ];
    for (body, status) in bodies {
        let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/register");
        let request = request.header("content-type", "application/json").body(body.to_vec());
        let answer = app.anonymous().send(request).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(answer.status, status, "{shown}: {}", answer.text);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{shown}");
    }
    for (name, value) in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/login").body("{}");
        let request =
            if name == "content-type" { request } else { request.header("content-type", "application/json") };
        app.anonymous().send(request.header(name, value)).await.expect(415);
    }
}

/// Case A6.
#[tokio::test]
async fn a_refresh_token_works_once_and_a_lost_answer_is_given_again() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let (status, first) = refresh(&app, &user.refresh_token).await;
    assert_eq!(status, 200);
    let (status, again) = refresh(&app, &user.refresh_token).await;
    assert_eq!(
        (status, &again["refresh_token"]),
        (200, &first["refresh_token"]),
        "within the grace: the same child"
    );
    let child = first["refresh_token"].as_str().unwrap();
    assert_eq!(refresh(&app, child).await.0, 200);
    let token = first["access_token"].as_str().unwrap();
    app.anonymous().with_token(token).get("/v1/me").await.expect(200);

    let (status, _) = refresh(&app, &user.refresh_token).await;
    assert_eq!(status, 401, "its child was used: somebody has a copy");
    assert_eq!(refresh(&app, child).await.0, 401, "the whole family is dead");
    app.anonymous().with_token(token).get("/v1/me").await.problem(401, "revoked");
    let events: i64 = sqlx::query_scalar("select count(*) from audit_log where event = 'refresh_reuse'")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(events, 1);
}

/// Case A6.
#[tokio::test]
async fn after_the_grace_a_second_use_ends_the_session() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let (_, first) = refresh(&app, &user.refresh_token).await;
    app.advance_clock(TimeDelta::seconds(11));
    assert_eq!(refresh(&app, &user.refresh_token).await.0, 401);
    assert_eq!(refresh(&app, first["refresh_token"].as_str().unwrap()).await.0, 401);
}

/// Case A7.
#[tokio::test]
async fn after_logout_no_token_of_the_session_works_on_any_replica() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    user.at(&other).get("/v1/me").await.expect(200);
    logout(&app, &user.refresh_token).await;
    user.get("/v1/me").await.problem(401, "revoked");
    user.at(&other).get("/v1/me").await.problem(401, "revoked");
    assert_eq!(refresh(&other, &user.refresh_token).await.0, 401);
    logout(&app, &user.refresh_token).await;
    logout(&app, "rt_nonsense").await;
}

#[tokio::test]
async fn sessions_end_when_they_are_old() {
    let app = TestApp::start().await;
    let user = app.user().await;
    app.advance_clock(TimeDelta::days(31));
    assert_eq!(refresh(&app, &user.refresh_token).await.0, 401);
    user.get("/v1/me").await.problem(401, "invalid_token");
}

/// Cases A12 and H10.
#[tokio::test]
async fn the_database_holds_no_secret_in_clear() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    // A mailed token is made by the job that mails it.
    user.post("/v1/auth/password/forgot", json!({ "email": user.email })).await;
    app.run_pending_jobs().await;
    let tables = ["users", "session", "refresh_token", "one_time_token", "job", "api_key", "audit_log"];
    let mut dump = String::new();
    for table in tables {
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select t::text from {table} t")))
                .fetch_all(app.database.pool())
                .await
                .unwrap();
        dump.push_str(&rows.join("\n"));
    }
    assert!(dump.contains(&user.email));
    assert!(dump.contains("reset_password"), "there is a mailed token: {dump}");
    // Of the key, its last part is the secret.
    let key = key.api_key_text().rsplit('_').next().unwrap();
    for secret in [PASSWORD, &user.refresh_token, user.token(), key] {
        assert!(!dump.contains(secret));
    }
    let mut words = dump.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
    assert!(!words.any(|word| word.starts_with("ot_")), "a mailed token");
}
