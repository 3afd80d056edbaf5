//! What the tests of the simulated engine share.
#![expect(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use engine_sim::Sim;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A client that hides nothing: no redirects, no proxy, no decompression.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

pub(crate) async fn post(sim: &Sim, path: &str, body: &Value) -> reqwest::Response {
    client().post(format!("{}{path}", sim.url())).json(body).send().await.unwrap()
}

pub(crate) async fn post_json(sim: &Sim, path: &str, body: &Value) -> (u16, Value) {
    let response = post(sim, path, body).await;
    (response.status().as_u16(), response.json().await.unwrap())
}

/// A streaming chat request whose prompt carries the given settings.
pub(crate) fn chat(settings: &str) -> Value {
    json!({"model": "sim-small", "stream": true, "messages": [{"role": "user", "content": format!("hello [[sim {settings}]]")}]})
}

/// The text of a whole event stream.
pub(crate) async fn stream(sim: &Sim, path: &str, body: &Value) -> String {
    let response = post(sim, path, body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    response.text().await.unwrap()
}

/// Name and data of every event; lines must end in LF.
pub(crate) fn events(text: &str) -> Vec<(String, String)> {
    assert!(text.ends_with("\n\n"), "the last event is complete");
    let field = |event: &str, name: &str| {
        event
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_start().to_owned())
            .unwrap_or_default()
    };
    text.trim_end().split("\n\n").map(|event| (field(event, "event:"), field(event, "data:"))).collect()
}

/// The data of every event of a chat stream except `[DONE]`, which must be the last.
pub(crate) fn chunks(text: &str) -> Vec<Value> {
    let mut events = events(text);
    assert_eq!(events.pop().unwrap().1, "[DONE]");
    events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect()
}

/// All texts of a chat stream, put together.
pub(crate) fn content(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// FIN
    Closed,
    /// RST
    Reset,
    /// Nothing came for 600 ms, or bytes still came after 2 s.
    Open,
}

/// The raw bytes of an answer, until the connection ends or falls silent.
pub(crate) async fn raw(sim: &Sim, body: &Value) -> (Vec<u8>, End) {
    let body = body.to_string();
    let mut socket = TcpStream::connect(sim.addr()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let deadline = Instant::now() + 2 * SECOND;
    let end = loop {
        if Instant::now() > deadline {
            break End::Open;
        }
        match tokio::time::timeout(Duration::from_millis(600), socket.read_buf(&mut bytes)).await {
            Err(_) => break End::Open,
            Ok(Ok(0)) => break End::Closed,
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => break End::Reset,
            Ok(Err(error)) => panic!("{error}"),
        }
    };
    (bytes, end)
}

/// Splits a raw answer after its head.
pub(crate) fn split_head(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole response head") + 4;
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), &bytes[end..])
}

/// The HTTP chunks of a raw body, and what follows the last whole one.
pub(crate) fn http_chunks(mut body: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut chunks = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        let Some(chunk) = body.get(end + 2..end + 2 + size) else { break };
        if body.len() < end + 4 + size {
            break;
        }
        chunks.push(chunk.to_vec());
        body = &body[end + 4 + size..];
    }
    (chunks, body.to_vec())
}
