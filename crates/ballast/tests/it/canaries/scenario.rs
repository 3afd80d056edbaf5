//! Every route, as it is meant to be used. A route that is added needs a line here: until then the test says so.

use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Value, json};

use super::{
    secrets::Class,
    world::{Tokens, Who, World},
};
use crate::support::eventually;

/// Who was made on the way.
pub(super) struct People {
    pub(super) user: Tokens,
    pub(super) admin: Tokens,
    pub(super) key: Who,
    pub(super) email: String,
    pub(super) password: String,
}

const NONE: Value = Value::Null;

pub(super) async fn every_route_works(w: &mut World, metrics_token: &str) -> People {
    let nobody = Who::default();
    for path in [
        "/",
        "/.well-known/jwks.json",
        "/openapi.json",
        "/docs",
        "/livez",
        "/readyz",
        "/ready",
        "/startupz",
        "/health",
        "/health/live",
        "/health/ready",
        "/health/startup",
    ] {
        w.ok(&nobody, &format!("GET {path}"), &[], NONE).await;
    }
    w.ok(&Who::token(metrics_token), "GET /metrics", &[], NONE).await;

    let people = identity(w).await;
    ai(w, &people.user.who).await;
    ai(w, &people.key).await;
    // Where accounts are looked after by mail; those who removed that part need no change here.
    let document = w.ok(&nobody, "GET /openapi.json", &[], NONE).await.json();
    if document["paths"]["/v1/auth/password/reset"].is_object() {
        account(w).await;
        invitations(w, &people.admin.who).await;
    }
    credentials(w, &people.user.who).await;
    webhook(w).await;
    webhook_endpoints(w, &people.user.who).await;
    user_jobs(w, &people.user.who).await;
    runs(w, &people.user.who).await;
    documents(w, &people.user.who).await;
    administration(w, &people.admin.who).await;
    limits(w, &people.admin.who, &people.email).await;
    people
}

async fn identity(w: &mut World) -> People {
    let email = "user@example.com".to_owned();
    let password = w.register(&email).await;
    let first = w.log_in(&email, &password).await;
    let refreshed =
        w.ok(&Who::default(), "POST /v1/auth/refresh", &[], json!({ "refresh_token": first.refresh })).await;
    let user = w.learn_tokens(&refreshed);
    w.ok(&user.who, "GET /v1/me", &[], NONE).await;
    w.ok(&user.who, "GET /v1/subscription", &[], NONE).await;
    w.ok(&user.who, "GET /v1/whoami", &[], NONE).await;

    let name = w.secrets.new_value("the name of a key", Class::Content);
    let made = w.ok(&user.who, "POST /v1/api-keys", &[], json!({ "name": name })).await.json();
    let key = made["key"].as_str().unwrap().to_owned();
    w.secrets.learn("an API key", &key, Class::Secret);
    let other = w.ok(&user.who, "POST /v1/api-keys", &[], json!({ "name": "soon revoked" })).await.json();
    w.secrets.learn("a revoked API key", other["key"].as_str().unwrap(), Class::Secret);
    w.ok(&user.who, "DELETE /v1/api-keys/{id}", &[other["id"].as_str().unwrap()], NONE).await;
    w.ok(&user.who, "GET /v1/api-keys", &[], NONE).await;
    w.ok(&Who::key(&key), "GET /v1/me", &[], NONE).await;

    cookie_login(w, &email, &password).await;
    let leaving = w.log_in(&email, &password).await;
    w.ok(&Who::default(), "POST /v1/auth/logout", &[], json!({ "refresh_token": leaving.refresh })).await;

    let admins = w.register("admin@example.com").await;
    sqlx::query("update users set role = 'admin' where email = 'admin@example.com'")
        .execute(&w.pool)
        .await
        .unwrap();
    let admin = w.log_in("admin@example.com", &admins).await;
    People { user, admin, key: Who::key(&key), email, password }
}

/// As a browser does it: the refresh token is in a cookie, which buys the next one.
async fn cookie_login(w: &mut World, email: &str, password: &str) {
    let mut headers = HeaderMap::new();
    headers.insert("origin", "https://api.example.com".parse().unwrap());
    let account = json!({ "email": email, "password": password, "cookie": true });
    let mut asked = ("POST /v1/auth/login", Some(account.to_string().into_bytes()));
    for _ in 0..3 {
        let (operation, body) = asked;
        let answer = w.send(&Who::default(), operation, &[], "", headers.clone(), body).await;
        assert_eq!(answer.status, 200, "{operation}: {}", answer.text);
        let cookie = answer.header("set-cookie").split(';').next().unwrap();
        w.secrets.learn("the refresh token of a cookie", cookie.split_once('=').unwrap().1, Class::Secret);
        headers.insert("cookie", cookie.parse().unwrap());
        asked = ("POST /v1/auth/refresh", None);
    }
}

async fn account(w: &mut World) {
    let (nobody, email) = (Who::default(), "account@example.com");
    let password = w.register(email).await;
    let user = w.log_in(email, &password).await.who;
    let other = w.log_in(email, &password).await;
    w.ok(&user, "POST /v1/auth/verify-email/resend", &[], NONE).await;
    w.spend_mailed_token("verify_email", "token", email, "POST /v1/auth/verify-email", json!({})).await;
    let sessions = w.ok(&other.who, "GET /v1/sessions", &[], NONE).await.json();
    let id =
        sessions["data"].as_array().unwrap().iter().find(|s| s["current"] == false).unwrap()["id"].clone();
    w.ok(&other.who, "DELETE /v1/sessions/{id}", &[id.as_str().unwrap()], NONE).await;

    let next = w.secrets.new_value("a changed password", Class::Secret);
    let change = json!({ "current_password": password, "new_password": next });
    w.ok(&other.who, "POST /v1/auth/password", &[], change).await;
    w.ok(&nobody, "POST /v1/auth/password/forgot", &[], json!({ "email": email })).await;
    let last = w.secrets.new_value("a reset password", Class::Secret);
    let reset = json!({ "password": last });
    w.spend_mailed_token("reset_password", "token", email, "POST /v1/auth/password/reset", reset).await;
    let user = w.log_in(email, &last).await.who;
    w.ok(&user, "POST /v1/auth/logout-all", &[], NONE).await;
}

async fn invitations(w: &mut World, admin: &Who) {
    let guest = json!({ "email": "guest@example.com" });
    let made = w.ok(admin, "POST /v1/admin/invitations", &[], guest).await.json();
    w.ok(admin, "GET /v1/admin/invitations", &[], NONE).await;
    w.ok(admin, "DELETE /v1/admin/invitations/{id}", &[made["id"].as_str().unwrap()], NONE).await;
}

async fn ai(w: &mut World, who: &Who) {
    let prompt = w.secrets.new_value("a prompt", Class::Content);
    for stream in [false, true] {
        let messages = json!([{ "role": "user", "content": prompt }]);
        let chat = json!({ "model": "sim-small", "messages": messages, "stream": stream });
        w.ok(who, "POST /v1/chat/completions", &[], chat).await;
        let response = json!({ "model": "sim-small", "input": prompt, "stream": stream });
        w.ok(who, "POST /v1/responses", &[], response).await;
    }
    w.ok(who, "POST /v1/embeddings", &[], json!({ "model": "sim-embedding", "input": prompt })).await;
    w.ok(who, "POST /v1/ai/{path}", &["stream"], json!({ "prompt": prompt, "stream": true })).await;
    w.ok(who, "GET /v1/models", &[], NONE).await;
    w.ok(who, "GET /v1/models/{id}", &["sim-small"], NONE).await;
    w.ok(who, "GET /v1/usage", &[], NONE).await;
}

/// Of other systems: one that its provider takes, and one whose provider quotes it when it refuses.
async fn credentials(w: &mut World, who: &Who) {
    for provider in ["sim", "telltale"] {
        let secret = w.secrets.new_value("a stored credential", Class::Secret);
        let body = json!({ "name": provider, "provider": provider, "secret": secret });
        w.ok(who, "POST /v1/credentials", &[], body).await;
    }
    let patience = std::time::Duration::from_secs(20);
    eventually("the credential is tried", patience, async || {
        let listed = w.ok(who, "GET /v1/credentials", &[], NONE).await.json();
        listed["data"].as_array().unwrap().iter().any(|credential| credential["status"] == "ok")
    })
    .await;
    let spare = w.secrets.new_value("a deleted credential", Class::Secret);
    let body = json!({ "name": "spare", "provider": "sim", "secret": spare });
    let id = w.ok(who, "POST /v1/credentials", &[], body).await.json()["id"].as_str().unwrap().to_owned();
    w.ok(who, "DELETE /v1/credentials/{id}", &[&id], NONE).await;
}

async fn webhook(w: &mut World) {
    let note = w.secrets.new_value("a webhook", Class::Content);
    let body = json!({ "type": "contact.created", "data": { "note": note } }).to_string();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let signature =
        webhooks::standard::sign(&w.webhook_secret.parse().unwrap(), "msg_1", now, body.as_bytes());
    w.secrets.learn("a signature", &signature, Class::Secret);
    let mut headers = HeaderMap::new();
    for (name, value) in [("id", "msg_1"), ("timestamp", &now.to_string()), ("signature", &signature)] {
        let name: HeaderName = format!("webhook-{name}").parse().unwrap();
        headers.insert(name, value.parse().unwrap());
    }
    let (operation, body) = ("POST /v1/webhooks/{source}", Some(body.into_bytes()));
    let answer = w.send(&Who::default(), operation, &["crm"], "", headers, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// Waits for a job's state.
async fn until(w: &mut World, who: &Who, operation: &str, id: &str, state: &str) {
    let patience = std::time::Duration::from_secs(20);
    eventually(&format!("job {id} is {state}"), patience, async || {
        w.ok(who, operation, &[id], NONE).await.json()["state"] == state
    })
    .await;
}

async fn user_jobs(w: &mut World, who: &Who) {
    let message = w.secrets.new_value("a message", Class::Content);
    let echo = |extra: Value| {
        let mut args = json!({ "message": message });
        args.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({ "kind": "echo", "args": args })
    };
    let id = |answer: Value| answer["id"].as_str().unwrap().to_owned();
    let done = id(w.ok(who, "POST /v1/jobs", &[], echo(json!({}))).await.json());
    until(w, who, "GET /v1/jobs/{id}", &done, "completed").await;
    w.ok(who, "GET /v1/jobs/{id}/events", &[&done], NONE).await;
    // One that fails once, and one that is cancelled while it runs.
    w.ok(who, "POST /v1/jobs", &[], echo(json!({ "fail_times": 1 }))).await;
    let long = id(w.ok(who, "POST /v1/jobs", &[], echo(json!({ "sleep_ms": 60_000 }))).await.json());
    w.ok(who, "POST /v1/jobs/{id}/cancel", &[&long], NONE).await;
    until(w, who, "GET /v1/jobs/{id}", &long, "cancelled").await;
}

/// One that is read with a ticket, and one that is stopped.
async fn runs(w: &mut World, who: &Who) {
    let prompt = w.secrets.new_value("the prompt of a run", Class::Content);
    let body = json!({ "model": "sim-small", "messages": [{ "role": "user", "content": prompt }] });
    let id = w.ok(who, "POST /v1/runs", &[], body.clone()).await.json()["id"].as_str().unwrap().to_owned();
    let made = w.ok(who, "POST /v1/runs/{id}/ticket", &[&id], NONE).await.json();
    let ticket = made["ticket"].as_str().unwrap();
    w.secrets.learn("a ticket", ticket, Class::Secret);
    let (events, query) = ("GET /v1/runs/{id}/events", format!("?ticket={ticket}"));
    let answer = w.send(&Who::default(), events, &[&id], &query, HeaderMap::new(), None).await;
    assert!(answer.text.contains("event: end"), "{}", answer.text);
    w.ok(who, "GET /v1/runs/{id}", &[&id], NONE).await;
    w.ok(who, "DELETE /v1/runs/{id}/ticket", &[&id], NONE).await;
    w.ok(who, "DELETE /v1/runs/{id}", &[&id], NONE).await;
}

async fn documents(w: &mut World, who: &Who) {
    let content = w.secrets.new_value("a document", Class::Content);
    let body = json!({ "title": "A document", "content": content });
    let made = w.ok(who, "POST /v1/documents", &[], body).await.json();
    let id = made["id"].as_str().unwrap();
    until(w, who, "GET /v1/documents/{id}", id, "ready").await;
    w.ok(who, "GET /v1/documents", &[], NONE).await;
    w.ok(who, "DELETE /v1/documents/{id}", &[id], NONE).await;
}

async fn administration(w: &mut World, admin: &Who) {
    w.ok(admin, "GET /v1/admin/audit", &[], NONE).await;
    w.ok(admin, "GET /v1/admin/usage", &[], NONE).await;
    w.ok(admin, "GET /v1/admin/cron", &[], NONE).await;
    w.ok(admin, "GET /v1/admin/queues", &[], NONE).await;
    w.ok(admin, "POST /v1/admin/queues/{name}/pause", &["default"], NONE).await;
    let echo = json!({ "kind": "echo", "args": { "message": "by an administrator" } });
    let id = w.ok(admin, "POST /v1/admin/jobs", &[], echo).await.json()["id"].as_str().unwrap().to_owned();
    w.ok(admin, "GET /v1/admin/jobs", &[], NONE).await;
    w.ok(admin, "GET /v1/admin/jobs/{id}", &[&id], NONE).await;
    w.ok(admin, "POST /v1/admin/jobs/{id}/cancel", &[&id], NONE).await;
    w.ok(admin, "POST /v1/admin/jobs/{id}/retry", &[&id], NONE).await;
    w.ok(admin, "POST /v1/admin/queues/{name}/resume", &["default"], NONE).await;
}

async fn limits(w: &mut World, admin: &Who, email: &str) {
    w.ok(admin, "GET /v1/admin/limits", &[], NONE).await;
    let query = format!("?key=ip:127.0.0.1,email:{email}");
    for operation in ["GET /v1/admin/limits/{policy}", "DELETE /v1/admin/limits/{policy}"] {
        let answer = w.send(admin, operation, &["login"], &query, HeaderMap::new(), None).await;
        assert_eq!(answer.status, 200, "{operation}: {}", answer.text);
    }
    let made = w.ok(admin, "POST /v1/api-keys", &[], json!({ "name": "limited" })).await.json();
    w.secrets.learn("a limited API key", made["key"].as_str().unwrap(), Class::Secret);
    let (id, own) = (made["id"].as_str().unwrap(), json!({ "limits": { "global": "1000/15m" } }));
    w.ok(admin, "PUT /v1/admin/api-keys/{id}/limits", &[id], own).await;
    w.ok(admin, "GET /v1/admin/api-keys/{id}/limits", &[id], NONE).await;
}

/// A name that leads inside, where deployments deliver nothing; what stands in the address is its owner's.
async fn webhook_endpoints(w: &mut World, who: &Who) {
    let path = w.secrets.new_value("the path of an endpoint", Class::Content);
    let body = json!({ "url": format!("https://localhost:8443/{path}") });
    let made = w.ok(who, "POST /v1/webhook-endpoints", &[], body).await.json();
    w.secrets.learn("an endpoint's secret", made["secret"].as_str().unwrap(), Class::Secret);
    let id = made["id"].as_str().unwrap();
    w.ok(who, "POST /v1/webhook-endpoints/{id}/ping", &[id], NONE).await;
    let deliveries = "GET /v1/webhook-endpoints/{id}/deliveries";
    eventually("the delivery is tried", std::time::Duration::from_secs(20), async || {
        let log = w.ok(who, deliveries, &[id], NONE).await.json();
        log["data"][0]["last_error"] == "the address is not public"
    })
    .await;
    w.ok(who, "GET /v1/webhook-endpoints", &[], NONE).await;
    w.ok(who, "DELETE /v1/webhook-endpoints/{id}", &[id], NONE).await;
}
