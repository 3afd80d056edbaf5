//! What people do with accounts: invitations, mails with one-time tokens, passwords, sessions, cookies.

mod cookies;
mod invitations;
mod mails;
mod page;
mod passwords;
mod races;
mod sessions;
mod sign_up;
mod takeovers;

use serde_json::{Value, json};

use crate::support::{Persona, TestApp, insert_user};

/// An administrator, also where nobody may register.
async fn operator(app: &TestApp) -> Persona {
    let email = "operator@example.com";
    let find = async |c: &mut _| db::users::find_by_email(c, email).await;
    if app.state.database.call::<_, db::Error>("test", find).await.unwrap().is_none() {
        insert_user(app.database.pool(), email, "admin").await;
    }
    app.session(email).await
}

/// Runs what is due, and returns the mails that are there, newest first.
async fn mails(app: &TestApp) -> Vec<Value> {
    app.run_pending_jobs().await;
    let shown = operator(app).await.get("/v1/admin/mails").await.expect(200).json();
    shown["data"].as_array().unwrap().clone()
}

/// Asks for a mail to reset the password, and returns its token.
async fn reset_token(app: &TestApp, email: &str) -> String {
    app.anonymous().post("/v1/auth/password/forgot", json!({ "email": email })).await.expect(202);
    app.mailed_token(email).await
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
