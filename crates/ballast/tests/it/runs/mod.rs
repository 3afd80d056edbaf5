//! Resumable runs: made by a worker, watched through any replica, taken up where they were left.

mod faults;
mod processes;
mod reading;
mod stopping;
mod tickets;

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Persona, TestApp, eventually};

const S: fn(u64) -> Duration = Duration::from_secs;

/// An event as EventSource sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Event {
    id: String,
    name: String,
    data: String,
}

impl Event {
    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

fn parse(text: &str) -> Vec<Event> {
    let blocks = text.split("\n\n").filter(|block| block.lines().any(|line| line.starts_with("data:")));
    let event = |block: &str| {
        let mut event = Event::default();
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", value)) => value.clone_into(&mut event.id),
                Some(("event", value)) => value.clone_into(&mut event.name),
                Some(("data", value)) => event.data.push_str(value),
                _ => {}
            }
        }
        event
    };
    blocks.map(event).collect()
}

fn names(events: &[Event]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    names.dedup();
    names
}

/// The text that the pieces make, from the last begin on.
fn text(events: &[Event]) -> String {
    let begin = events.iter().rposition(|event| event.name == "restarted").unwrap_or(0);
    let pieces = events[begin..].iter().filter(|event| event.name.is_empty());
    let content = |event: &Event| event.json()["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    pieces.filter_map(content).collect()
}

fn prompt(text: &str) -> Value {
    json!({ "model": "sim-small", "messages": [{ "role": "user", "content": text }] })
}

/// Starts a run and returns its path.
async fn start(user: &Persona, text: &str) -> String {
    let answer = user.post("/v1/runs", prompt(text)).await.expect(202);
    let path = answer.header("location").to_owned();
    assert_eq!(path, format!("/v1/runs/{}", answer.json()["id"].as_str().unwrap()));
    path
}

/// Opens the events of a run.
async fn open(who: &Persona, path: &str, after: Option<&str>) -> Response {
    let request = who.request(Method::GET, &format!("{path}/events"));
    let request = after.iter().fold(request, |request, id| request.header("last-event-id", *id));
    // Of a stream, the client's own limit knows nothing.
    request.timeout(S(120)).send().await.unwrap()
}

/// Reads to the end of the stream.
async fn rest(response: Response) -> Vec<Event> {
    let status = response.status();
    let text = tokio::time::timeout(S(100), response.text()).await.expect("the stream ends").unwrap();
    assert_eq!(status, 200, "{text}");
    parse(&text)
}

async fn read(who: &Persona, path: &str, after: Option<&str>) -> Vec<Event> {
    rest(open(who, path, after).await).await
}

/// Reads until this many pieces have come.
async fn some(response: &mut Response, pieces: usize) -> Vec<Event> {
    let mut text = String::new();
    let read = async {
        loop {
            let whole = text.rfind("\n\n").map_or("", |end| &text[..end + 2]);
            let events = parse(whole);
            if events.iter().filter(|event| event.name.is_empty()).count() >= pieces {
                return events;
            }
            let chunk = response.chunk().await.unwrap().expect("it goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    tokio::time::timeout(S(30), read).await.expect("pieces come")
}

async fn state(user: &Persona, path: &str) -> String {
    user.get(path).await.expect(200).json()["state"].as_str().unwrap().to_owned()
}

async fn until(user: &Persona, path: &str, wanted: &str) {
    eventually(&format!("{path} is {wanted}"), S(40), async || state(user, path).await == wanted).await;
}

/// Outcome, tokens and whether they are estimated, of every usage row.
async fn usage(app: &TestApp) -> Vec<(String, i64, i64, bool)> {
    sqlx::query_as("select outcome, prompt_tokens, completion_tokens, estimated from usage_event order by id")
        .fetch_all(app.database.pool())
        .await
        .unwrap()
}
