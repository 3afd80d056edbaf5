//! Requests that are refused.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{chat, read, whole};
use crate::support::{Deployment, TestApp, free_port, ready};

/// Case H5.
#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_openai_errors_and_never_reach_the_engine() {
    let app = TestApp::with(&[("AI_MAX_BODY_BYTES", "4096")]).await;
    let user = app.user().await;
    let deep = format!(r#"{{"model":"m","messages":{}{}}}"#, "[".repeat(1_000), "]".repeat(1_000));
    let long = format!(r#"{{"model":"m","messages":["{}"]}}"#, "x".repeat(5_000));
    for (body, status, param) in [
        ("{", 400, Value::Null),
        ("", 400, Value::Null),
        ("\u{feff}{}", 400, Value::Null),
        (r#"{"model":"m","messages":[NaN]}"#, 400, Value::Null),
        (deep.as_str(), 400, Value::Null),
        (r#"{"messages":[{"role":"user","content":"x"}]}"#, 400, json!("model")),
        (r#"{"model":"m"}"#, 400, json!("messages")),
        (r#"{"model":"m","messages":[1],"n":1000}"#, 400, json!("n")),
        (r#"{"model":"m","messages":[1],"max_tokens":0}"#, 400, json!("max_tokens")),
        (r#"{"model":"m","model":"n","messages":[1]}"#, 400, Value::Null),
        (long.as_str(), 413, Value::Null),
    ] {
        let request = user.request(Method::POST, "/v1/chat/completions");
        let request = request.header("content-type", "application/json").body(body.to_owned());
        let answer = user.send(request).await.expect(status);
        assert_eq!(answer.header("content-type"), "application/json", "{body:.60}");
        let error = &answer.json()["error"];
        assert!(error["message"].as_str().is_some_and(|m| m.len() > 10), "{body:.60}: {error}");
        assert_eq!(error["type"], "invalid_request_error", "{body:.60}");
        assert_eq!(error["param"], param, "{body:.60}: {error}");
    }
    let body = chat("x").to_string();
    for (name, value) in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        let mut request = user.request(Method::POST, "/v1/chat/completions");
        if name != "content-type" {
            request = request.header("content-type", "application/json");
        }
        let answer = user.send(request.header(name, value).body(body.clone())).await.expect(415);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    assert_eq!(app.engine.stats().requests_total, 0);
    assert_eq!(app.state.ai.open(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_cut_off_at_the_limit() {
    let app = TestApp::with(&[("AI_MAX_BODY_BYTES", "4096")]).await;
    let user = app.user().await;
    let pieces = std::iter::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1_000])).take(1_000_000);
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let request =
        user.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
    // The answer may be lost when the connection is closed while the client still writes.
    if let Ok(response) = request.body(body).send().await {
        assert_eq!(response.status(), 413);
    }
    assert_eq!(app.engine.stats().requests_total, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_in_openais_words() {
    let app = TestApp::start().await;
    let anonymous = app.anonymous().post("/v1/chat/completions", chat("x")).await.expect(401);
    assert_eq!(anonymous.json()["error"]["type"], "authentication_error");
    assert!(anonymous.header("www-authenticate").starts_with("Bearer"));
    let user = app.user().await;
    let other = app.api_key(&user, &["jobs"]).await;
    for answer in [other.post("/v1/chat/completions", chat("x")).await, other.get("/v1/models").await] {
        assert_eq!(answer.expect(403).json()["error"]["type"], "permission_error");
    }
    let key = app.api_key(&user, &["ai"]).await;
    assert!(read(&key, "/v1/chat/completions", chat("x")).await.ends_with("data: [DONE]\n\n"));
    assert_eq!(app.engine.stats().requests_total, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_stay_below_their_place() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let host = app.url.strip_prefix("http://").unwrap();
    for target in [
        "POST /v1/ai/../models",
        "POST /v1/ai/%2e%2e/models",
        "POST /v1/ai/a/%2E%2E/%2E%2E/control",
        "POST /v1/ai/a%2f..%2f..%2fcontrol",
        "GET /v1/models/%2e%2e/control",
        "GET /v1/models/a%0d%0ax:y",
    ] {
        // By hand: a client library would resolve the path itself.
        let mut client = TcpStream::connect(host).await.unwrap();
        let request = format!(
            "{target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}",
            user.token()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{target}: {answer}");
    }
    assert_eq!(app.engine.stats().requests_total, 0);
    let answer = user.post("/v1/ai/stream", whole("/v1/ai/stream", "Hello!")).await.expect(200);
    assert!(answer.text.contains("event: done"), "the engine decides to stream: {}", answer.text);
}

/// A proxy that somebody set for other programs would see every prompt, and the engine's key.
#[tokio::test(flavor = "multi_thread")]
async fn no_proxy_of_the_environment_sees_a_request_to_the_engine() {
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let vars = names.map(|name| (name, address.as_str()));
    let deployment = Deployment::new().await;
    let port = free_port();
    let _api = deployment.start("api", port, &vars);
    ready(port).await;
    let user = deployment.user_at(port).await;
    assert!(read(&user, "/v1/chat/completions", chat("x")).await.contains("[DONE]"));
    user.get("/v1/models").await.expect(200);
    assert!(deployment.engine.stats().requests_total >= 2);
    let asked = tokio::time::timeout(std::time::Duration::from_millis(100), proxy.accept()).await;
    assert!(asked.is_err(), "{asked:?}");
}
