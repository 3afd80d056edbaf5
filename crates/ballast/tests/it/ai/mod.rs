//! The AI proxy, with the simulated engine behind it. Each test is a failure that users of some gateway reported.

mod accounting;
mod cache;
mod cancellation;
mod draining;
mod engines;
mod faults;
mod limits;
mod proofs;
mod requests;
pub(crate) mod scripted;
mod streams;
mod telemetry;
mod usage;

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Persona, TestApp};

pub(crate) const S: fn(u64) -> Duration = Duration::from_secs;
pub(crate) const MS: fn(u64) -> Duration = Duration::from_millis;

/// Every route that streams.
pub(crate) const STREAMING: [&str; 3] = ["/v1/chat/completions", "/v1/responses", "/v1/ai/stream"];

/// A request for a stream on one of these routes; faults are asked of the engine in the prompt.
pub(crate) fn streaming(route: &str, prompt: &str) -> Value {
    match route {
        "/v1/chat/completions" => {
            json!({"model": "sim-small", "stream": true, "messages": [{"role": "user", "content": prompt}]})
        }
        "/v1/responses" => json!({"model": "sim-small", "stream": true, "input": prompt}),
        _ => json!({"prompt": prompt, "stream": true}),
    }
}

/// The same in one piece.
pub(crate) fn whole(route: &str, prompt: &str) -> Value {
    let mut body = streaming(route, prompt);
    body.as_object_mut().unwrap().remove("stream");
    body
}

pub(crate) fn chat(prompt: &str) -> Value {
    streaming("/v1/chat/completions", prompt)
}

/// The head of a stream.
pub(crate) async fn open(user: &Persona, route: &str, body: Value) -> Response {
    let response = user.request(Method::POST, route).json(&body).send().await.unwrap();
    let status = response.status();
    if status != 200 {
        let text = response.text().await.unwrap();
        panic!("{status}: {text}");
    }
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    response
}

/// A whole stream as text.
pub(crate) async fn read(user: &Persona, route: &str, body: Value) -> String {
    open(user, route, body).await.text().await.unwrap()
}

/// The data of each event in a text.
pub(crate) fn events(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
}

/// The error in the last event, which no `[DONE]` follows.
pub(crate) fn last_error(text: &str) -> Value {
    assert!(!text.contains("[DONE]"), "{text}");
    assert!(text.ends_with("\n\n"), "{text}");
    let last = events(text).last().copied().unwrap_or_default();
    let data: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("no error: {text}"));
    if data["type"] == "error" { data } else { data["error"].clone() }
}

/// Nothing of a request is left, neither here nor at the engine.
pub(crate) async fn nothing_is_left(app: &TestApp) {
    app.engine.wait_for(S(2), |stats| stats.requests_open == 0).await;
    crate::support::eventually("no open request", S(2), async || app.state.ai.open() == 0).await;
}

/// Rows of usage, oldest first: outcome, prompt tokens, completion tokens, estimated.
async fn usage_rows(app: &TestApp) -> Vec<(String, i64, i64, bool)> {
    assert!(app.state.ai.flush_usage().await);
    sqlx::query_as("select outcome, prompt_tokens, completion_tokens, estimated from usage_event order by id")
        .fetch_all(app.database.pool())
        .await
        .unwrap()
}
