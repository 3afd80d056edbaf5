//! What people do with accounts: invitations, mails with one-time tokens, passwords, sessions, cookies.

mod cookies;
mod invitations;
mod mails;
mod page;
mod passwords;
mod races;
mod sessions;
mod takeovers;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{PASSWORD, Persona, TestApp};

/// An administrator, also where nobody may register.
async fn operator(app: &TestApp) -> Persona {
    let email = "operator@example.com";
    let hash = api::auth::hash_password(PASSWORD).unwrap();
    let insert = async |c: &mut _| match db::users::find_by_email(c, email).await? {
        Some(user) => Ok(user),
        None => db::users::insert(c, Uuid::now_v7(), email, &hash, "admin").await,
    };
    app.state.database.call::<_, db::Error>("test", insert).await.unwrap();
    app.log_in(email).await
}

/// Runs what is due, and returns the mails that are there, newest first.
async fn mails(app: &TestApp) -> Vec<Value> {
    app.run_pending_jobs().await;
    let shown = operator(app).await.get("/v1/admin/mails").await.expect(200).json();
    shown["data"].as_array().unwrap().clone()
}

/// The token of the newest mail to this address.
async fn mailed_token(app: &TestApp, to: &str) -> String {
    let mails = mails(app).await;
    let mail = mails.iter().find(|m| m["to"] == to).unwrap_or_else(|| panic!("no mail to {to}: {mails:?}"));
    let text = mail["text"].as_str().unwrap();
    text[text.find("ot_").unwrap()..].chars().take(46).collect()
}

/// Asks for a mail to reset the password, and returns its token.
async fn reset_token(app: &TestApp, email: &str) -> String {
    app.anonymous().post("/v1/auth/password/forgot", json!({ "email": email })).await.expect(202);
    mailed_token(app, email).await
}

async fn login(app: &TestApp, email: &str, password: &str) -> (u16, Value) {
    let body = json!({ "email": email, "password": password });
    let answer = app.anonymous().post("/v1/auth/login", body).await;
    (answer.status, answer.json())
}

async fn refresh(app: &TestApp, token: &str) -> (u16, Value) {
    let answer = app.anonymous().post("/v1/auth/refresh", json!({ "refresh_token": token })).await;
    (answer.status, answer.json())
}

async fn count(app: &TestApp, query: &str) -> i64 {
    let query = sqlx::AssertSqlSafe(format!("select count(*) from {query}"));
    sqlx::query_scalar(query).fetch_one(app.database.pool()).await.unwrap()
}

async fn audited(app: &TestApp, event: &str) -> i64 {
    count(app, &format!("audit_log where event = '{event}'")).await
}
