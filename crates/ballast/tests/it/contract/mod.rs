//! Rules that hold for every route there is, generated from the API's own description: a new route is under all of them
//! without a line of test code. One thing has to be said by hand: how its owner makes what is behind a path with an id
//! ([`resources::RESOURCES`]).

mod bad_bodies;
mod cors;
mod headers;
mod injection;
mod ownership;
mod resources;
mod routes;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use reqwest::RequestBuilder;
use serde_json::Value;

use crate::support::{Answer, Operation, Persona, TestApp};

/// Limits that are not met by asking everything of every route.
const ROOMY: [(&str, &str); 9] = [
    ("RATE_LIMIT_GLOBAL", "1000000/15m"),
    ("RATE_LIMIT_LOGIN", "100000/15m"),
    ("RATE_LIMIT_REFRESH", "100000/15m"),
    ("RATE_LIMIT_SIGNUP", "100000/1h"),
    ("RATE_LIMIT_ACCOUNT_MAIL", "100000/1h"),
    ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
    ("RATE_LIMIT_AI_TOKENS", "1000000000/1m"),
    ("RATE_LIMIT_AI_TOKENS_DAILY", "1000000000/1d"),
    ("AI_CONCURRENT_STREAMS", "1000"),
];

/// In the place of an id: what nobody has.
const NOBODYS: &str = "0";

/// An app with people who may do everything that somebody may.
struct World {
    app: TestApp,
    user: Persona,
    admin: Persona,
    anonymous: Persona,
    /// Somebody whose sessions may all end.
    leaver: Persona,
}

impl World {
    async fn start() -> Self {
        let app = TestApp::with(&ROOMY).await;
        let (user, admin, leaver) = (app.user().await, app.admin().await, app.user().await);
        // One to end: the first that is listed, because it is the newest.
        app.session_of(&user).await;
        let anonymous = app.anonymous();
        Self { app, user, admin, anonymous, leaver }
    }

    /// Somebody who may call this operation.
    fn who_may(&self, operation: &Operation) -> &Persona {
        match operation {
            _ if operation.is_public() => &self.anonymous,
            _ if operation.is_for_admins() => &self.admin,
            _ if operation.path == "/v1/auth/logout-all" => &self.leaver,
            _ => &self.user,
        }
    }
}

/// The example of an operation's body, with a name that nothing has yet: many names may be used once.
fn fresh_body(operation: &Operation) -> Option<Value> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut body = operation.body()?;
    if let Some(Value::String(name)) = body.get_mut("name") {
        *name = format!("{name} {}", COUNT.fetch_add(1, Ordering::Relaxed));
    }
    Some(body)
}

/// A request of an operation, with its example for a body.
fn request(operation: &Operation, who: &Persona, path: &str) -> RequestBuilder {
    let request = who.request(operation.method.clone(), path);
    match fresh_body(operation) {
        Some(body) => request.json(&body),
        None => request,
    }
}

/// Sends it; when the burst shield says wait, waits, because these tests ask faster than any client.
async fn send(who: &Persona, request: RequestBuilder) -> Answer {
    loop {
        let answer = who.send(request.try_clone().expect("the body is no stream")).await;
        if !(answer.status == 429 && answer.text.contains("too_fast")) {
            return answer;
        }
        let wait = answer.header("retry-after").parse().expect("it says how long");
        tokio::time::sleep(Duration::from_secs(wait)).await;
    }
}

/// Asserts an error in the format of its route: a problem document, or OpenAI's error object.
#[track_caller]
fn assert_error_body(operation: &Operation, answer: &Answer, why: &str) {
    let body = answer.json();
    if operation.speaks_openai() {
        assert_eq!(answer.header("content-type"), "application/json", "{operation}, {why}");
        assert!(body["error"]["message"].is_string(), "{operation}, {why}: {body}");
    } else {
        assert_eq!(answer.header("content-type"), "application/problem+json", "{operation}, {why}");
        assert_eq!(body["status"], answer.status, "{operation}, {why}: {body}");
        assert_eq!(body["request_id"], answer.header("x-request-id"), "{operation}, {why}: {body}");
    }
}

/// Every text in a JSON value with the place where it stands, as a JSON pointer.
fn texts(value: &Value) -> Vec<String> {
    fn walk(value: &Value, at: &str, out: &mut Vec<String>) {
        match value {
            Value::String(_) => out.push(at.to_owned()),
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(i, v)| walk(v, &format!("{at}/{i}"), out));
            }
            Value::Object(fields) => fields.iter().for_each(|(k, v)| walk(v, &format!("{at}/{k}"), out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk(value, "", &mut out);
    out
}

/// The value with another one at this place.
fn with(value: &Value, at: &str, new: impl Into<Value>) -> Value {
    let mut value = value.clone();
    *value.pointer_mut(at).expect("the place exists") = new.into();
    value
}
