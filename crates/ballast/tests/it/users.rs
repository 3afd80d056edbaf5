//! `ballast user`, and what administrators read of it.

use std::{
    io::Write as _,
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    cli::run,
    support::{PASSWORD, Process, TestApp, mail_to},
};

fn vars(app: &TestApp) -> Vec<(&str, &str)> {
    vec![
        ("DATABASE_URL", app.database.url()),
        ("REDIS_URL", app.redis.url.as_str()),
        ("REDIS_KEY_PREFIX", app.redis.prefix.as_str()),
    ]
}

fn ballast_user(app: &TestApp, arguments: &[&str]) -> (i32, String) {
    let arguments: Vec<&str> = [&["user"], arguments].concat();
    let (code, stdout, stderr) = tokio::task::block_in_place(|| run(&arguments, &vars(app)));
    (code, format!("{stdout}{stderr}"))
}

fn create_with_password(app: &TestApp, email: &str, password: &str) -> (i32, String) {
    let mut command = Process::command(&["user", "create", email, "--admin", "--password-stdin"], &vars(app));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (
        status.code().unwrap(),
        format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_makes_accounts_that_log_in_with_a_password_that_was_never_an_argument() {
    let app = TestApp::start().await;
    let (code, text) = ballast_user(&app, &["create", "Ann@Example.com"]);
    let password = text.split_once("password: ").unwrap_or_else(|| panic!("{code} {text}")).1.trim();
    let login = json!({ "email": "ann@example.com", "password": password });
    app.anonymous().post("/v1/auth/login", login).await.expect(200);

    let (code, text) = create_with_password(&app, "root@example.com", &format!("{PASSWORD}\n"));
    assert!(code == 0 && !text.contains(PASSWORD), "{text}");
    let root = app.log_in("root@example.com").await;
    root.get("/v1/admin/queues").await.expect(200);

    for (email, password, words) in [
        ("root@example.com", PASSWORD, "already"),
        ("new@example.com", "short", "8 to 128"),
        ("new@example.com", "", "no password"),
        ("new@example.com", "Iloveyou!", "first that are guessed"),
        ("ann.smith@example.com", "Ann.Smith1", "first that are guessed"),
        ("not an address", PASSWORD, "not an e-mail address"),
    ] {
        let (code, text) = create_with_password(&app, email, password);
        assert!(code == 1 && text.contains(words), "{code} {text}");
    }
    assert_eq!(ballast_user(&app, &["create", "x@example.com", "--password", PASSWORD]).0, 2);
    let (code, text) = ballast_user(&app, &["list"]);
    assert!(code == 0 && text.contains("admin  enabled") && text.contains("ann@example.com"), "{text}");
}

/// Whoever types an address has not proven it: its owner is asked, unless the operator says that there is no need.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_an_account_that_an_operator_made_is_asked_to_confirm_the_address() {
    let app = TestApp::start().await;
    let (asked, vouched) = ("asked@example.com", "vouched@example.com");
    assert_eq!(ballast_user(&app, &["create", asked]).0, 0);
    assert_eq!(ballast_user(&app, &["create", vouched, "--verified"]).0, 0);
    let is_verified = async |email: &str| {
        let me = app.session(email).await.get("/v1/me").await.expect(200).json();
        me["email_verified"].as_bool().unwrap()
    };
    assert_eq!((is_verified(asked).await, is_verified(vouched).await), (false, true));
    let token = app.mailed_token(asked).await;
    assert_eq!(mail_to(app.database.pool(), vouched).await, None);
    app.anonymous().post("/v1/auth/verify-email", json!({ "token": token })).await.expect(204);
    assert!(is_verified(asked).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_user_is_out_on_every_replica_at_once_and_a_demoted_administrator_too() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    let key = app.api_key(&user, &["ai", "jobs"]).await;
    for replica in [&app, &other] {
        user.at(replica).get("/v1/me").await.expect(200);
        key.at(replica).get("/v1/me").await.expect(200);
    }
    let (code, text) = ballast_user(&app, &["disable", &user.email]);
    assert!(code == 0 && text.contains("now disabled"), "{text}");
    for replica in [&app, &other] {
        user.at(replica).get("/v1/me").await.problem(401, "revoked");
        key.at(replica).get("/v1/me").await.problem(401, "invalid_token");
    }
    let login = json!({ "email": user.email, "password": PASSWORD });
    app.anonymous().post("/v1/auth/login", login.clone()).await.problem(401, "invalid_credentials");
    let (code, text) = ballast_user(&app, &["disable", &user.email]);
    assert!(code == 0 && text.contains("already disabled"), "{text}");
    assert_eq!(ballast_user(&app, &["enable", &user.email]).0, 0);
    app.anonymous().post("/v1/auth/login", login).await.expect(200);
    key.get("/v1/me").await.problem(401, "invalid_token");

    // A token keeps its role until it expires; administration goes by what the database says now.
    let admin = app.admin().await;
    admin.get("/v1/admin/queues").await.expect(200);
    assert_eq!(ballast_user(&app, &["demote", &admin.email]).0, 0);
    for replica in [&app, &other] {
        admin.at(replica).get("/v1/admin/queues").await.problem(403, "admin_required");
    }
    assert_eq!(ballast_user(&app, &["promote", &admin.email]).0, 0);
    admin.get("/v1/admin/queues").await.expect(200);
    let (code, text) = ballast_user(&app, &["promote", &admin.email]);
    assert!(code == 0 && text.contains("already"), "{text}");
    for action in ["promote", "demote", "disable", "enable"] {
        let (code, text) = ballast_user(&app, &[action, "nobody@example.com"]);
        assert!(code == 1 && text.contains("there is no user"), "{text}");
    }

    // While Redis is out, it is said what that means, and the database has it all the same.
    let no_redis = [("DATABASE_URL", app.database.url()), ("REDIS_URL", "redis://127.0.0.1:1")];
    let (code, _, stderr) =
        tokio::task::block_in_place(|| run(&["user", "disable", &admin.email], &no_redis));
    assert!(code == 1 && stderr.contains("is disabled, but Redis cannot be told"), "{stderr}");
    admin.get("/v1/admin/queues").await.problem(401, "revoked");
    let (code, _, stderr) = tokio::task::block_in_place(|| run(&["user", "list"], &[]));
    assert!(code == 78 && stderr.contains("DATABASE_URL"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_read_security_events_page_by_page_and_by_user_kind_and_time() {
    let app = TestApp::start().await;
    let admin = app.log_in(&app.admin().await.email).await;
    app.register("ann@example.com", PASSWORD).await.expect(201);
    let user = app.log_in("ann@example.com").await;
    let before = app.clock.now();
    app.api_key(&user, &["ai"]).await;
    ballast_user(&app, &["promote", &user.email]);
    let id = user.get("/v1/me").await.expect(200).json()["id"].as_str().unwrap().to_owned();
    let page = async |query: &str| admin.get(&format!("/v1/admin/audit?{query}")).await.expect(200).json();
    let events = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect()
    };
    let of_user = page(&format!("user={id}")).await;
    assert_eq!(events(&of_user), ["role_changed", "api_key_created", "login", "registered"]);
    assert_eq!(of_user["data"][0]["detail"], json!({ "by": "command line", "role": "admin" }));
    let logins = page("event=login").await;
    assert!(events(&logins).len() >= 2 && events(&logins).iter().all(|e| e == "login"), "{logins}");
    let since = before.format("%Y-%m-%dT%H:%M:%S%.6fZ");
    assert_eq!(events(&page(&format!("since={since}&user={id}")).await), ["role_changed", "api_key_created"]);
    // One by one, without a gap and without an end that is not one.
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let one = page(&format!("user={id}&limit=1{cursor}")).await;
        seen.extend(events(&one));
        let Some(next) = one["next"].as_str() else { break };
        cursor = format!("&before={next}");
    }
    assert_eq!(seen, events(&of_user));
    for wrong in ["limit=0", "limit=201", "event=%00", "user=me", "since=yesterday", "before=x", "colour=red"]
    {
        let status = admin.get(&format!("/v1/admin/audit?{wrong}")).await.status;
        assert!(status == 400 || status == 422, "{wrong}: {status}");
    }
    let stranger = app.user().await;
    stranger.get("/v1/admin/audit").await.problem(403, "admin_required");
}
