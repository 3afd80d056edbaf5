//! What goes through unharmed.

use std::time::Instant;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    MS, S, STREAMING, chat, events, last_error, nothing_is_left, open, read, scripted::Scripted, streaming,
    whole,
};
use crate::support::TestApp;

/// What the engine sends when it is asked directly.
async fn direct(app: &TestApp, route: &str, body: &Value) -> Vec<u8> {
    let url = format!("{}{route}", app.engine.url());
    reqwest::Client::new().post(url).json(body).send().await.unwrap().bytes().await.unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_out_are_the_engines_bytes_on_every_route() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for route in STREAMING {
        for prompt in [
            "Hello!",
            "漢字と絵文字😀🎉",
            "[[sim tokens=2000 chunk-bytes=300]]",
            "[[sim fault=split:1 tokens=20]]",
        ] {
            let mut body = streaming(route, prompt);
            if route == "/v1/chat/completions" {
                body["stream_options"] = json!({"include_usage": true});
            }
            let expected = direct(&app, route, &body).await;
            let got = open(&user, route, body).await.bytes().await.unwrap();
            assert!(got == expected, "{route} {prompt}: {}", String::from_utf8_lossy(&got));
        }
        let mut body = whole(route, "Hello!");
        body["max_tokens"] = json!(5);
        if route != "/v1/ai/stream" {
            let expected = direct(&app, route, &body).await;
            assert_eq!(user.post(route, body).await.expect(200).text.into_bytes(), expected);
        }
    }
    nothing_is_left(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_asked_for_behind_the_clients_back_and_not_shown() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let text = read(&user, "/v1/chat/completions", chat("Hello!")).await;
    let sent: Value = serde_json::from_slice(&app.engine.stats().last_request.unwrap().body).unwrap();
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
    let events = events(&text);
    assert_eq!(events.last(), Some(&"[DONE]"));
    assert!(events.iter().all(|event| !event.contains("prompt_tokens")), "{text}");
    let mut asked = chat("Hello!");
    asked["stream_options"] = json!({"include_usage": true});
    assert!(read(&user, "/v1/chat/completions", asked).await.contains("prompt_tokens"));
    // The responses protocol reports by itself and knows no such option.
    read(&user, "/v1/responses", streaming("/v1/responses", "Hello!")).await;
    let sent: Value = serde_json::from_slice(&app.engine.stats().last_request.unwrap().body).unwrap();
    assert!(sent.get("stream_options").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_arrive_as_they_come_and_nothing_holds_them_back() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = chat("[[sim first-token-ms=100 token-interval-ms=50 tokens=10]]");
    let started = Instant::now();
    let request =
        user.request(Method::POST, "/v1/chat/completions").header("accept-encoding", "zstd, br, gzip");
    let mut response = request.json(&body).send().await.unwrap();
    for (name, value) in [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    for name in ["content-encoding", "content-length", "x-engine-sim", "server"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let mut arrivals = vec![];
    while let Some(chunk) = response.chunk().await.unwrap() {
        assert!(chunk.starts_with(b"data: ") && chunk.ends_with(b"\n\n"), "whole events only: {chunk:?}");
        arrivals.push(started.elapsed());
    }
    assert!(arrivals.len() >= 10, "{arrivals:?}");
    let (first, last) = (arrivals[0], arrivals[arrivals.len() - 1]);
    assert!(last > first + MS(350), "the tokens are spread over half a second: {arrivals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_sees_our_request_and_not_the_clients() {
    let app = TestApp::with(&[("ENGINE_API_KEY", "sk-of-the-engine")]).await;
    let user = app.user().await;
    let request = user.request(Method::POST, "/v1/chat/completions").json(&chat("Hello!"));
    let request = request
        .header("cookie", "secret=1")
        .header("x-sim-fault", "html")
        .header("x-forwarded-for", "1.2.3.4")
        .header("openai-beta", "assistants=v2")
        .header("accept-encoding", "gzip")
        .header("x-request-id", "my-request-0001");
    let answer = user.send(request).await.expect(200);
    assert_eq!(answer.header("x-request-id"), "my-request-0001");
    let seen = app.engine.stats().last_request.unwrap();
    let header = |name: &str| seen.headers.get(name).and_then(|v| v.to_str().ok());
    assert_eq!(header("authorization"), Some("Bearer sk-of-the-engine"));
    assert_eq!(header("accept-encoding"), Some("identity"));
    assert_eq!(header("accept"), Some("text/event-stream"));
    assert_eq!(header("openai-beta"), Some("assistants=v2"));
    assert_eq!(header("x-request-id"), Some("my-request-0001"));
    for name in ["cookie", "x-sim-fault", "x-forwarded-for", "x-api-key"] {
        assert_eq!(header(name), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_keep_a_silent_stream_alive_between_events_only() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "50ms"), ("ENGINE_HEADER_HOLD", "100ms")]).await;
    let user = app.user().await;
    // Before the first token: the head comes after the hold, then heartbeats, then the answer.
    let started = Instant::now();
    let body = chat("[[sim first-token-ms=3000 tokens=3]]");
    let response = open(&user, "/v1/chat/completions", body).await;
    assert!(started.elapsed() < MS(2_500), "the head does not wait for the first token");
    let text = response.text().await.unwrap();
    assert!(text.starts_with(": ping\n\n: ping\n\n"), "{text}");
    assert!(text.matches(": ping\n\n").count() >= 5, "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    // Between tokens.
    let text = read(&user, "/v1/chat/completions", chat("[[sim token-interval-ms=200 tokens=4]]")).await;
    assert!(text.matches(": ping\n\n").count() >= 6, "{text}");
    for block in text.split("\n\n").filter(|block| !block.is_empty()) {
        assert!(block == ": ping" || block.starts_with("data: "), "{block}");
        assert_eq!(block.lines().count(), 1, "{block}");
    }
    // Where the engine sends ids, a blank line would be an empty event to the OpenAI SDK.
    let text =
        read(&user, "/v1/ai/stream", streaming("/v1/ai/stream", "[[sim token-interval-ms=200 tokens=4]]"))
            .await;
    let after_ids = &text[text.find("id: 1").unwrap()..];
    assert!(after_ids.contains(": ping\n") && !after_ids.contains(": ping\n\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn line_ends_marks_and_empty_events_of_the_engine_do_no_harm() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let plain = read(&user, "/v1/chat/completions", chat("[[sim fault=none tokens=8]]")).await;
    let content = |text: &str| {
        let mut all = String::new();
        for event in events(text).into_iter().filter(|event| event.starts_with('{')) {
            let event: Value = serde_json::from_str(event).unwrap();
            all.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
        all
    };
    assert!(content(&plain).len() > 20);
    for fault in ["crlf", "cr", "bom", "split:1", "split:7", "empty-events"] {
        let text =
            read(&user, "/v1/chat/completions", chat(&format!("[[sim fault={fault} tokens=8]]"))).await;
        assert!(text.starts_with("data: "), "no byte order mark: {fault}: {text}");
        let normal = text.replace("\r\n", "\n").replace('\r', "\n");
        assert_eq!(content(&normal).len(), content(&plain).len(), "{fault}: {text}");
        assert!(normal.ends_with("data: [DONE]\n\n"), "{fault}: {text}");
        for block in normal.split("\n\n").filter(|block| !block.is_empty()) {
            assert!(
                block.starts_with("data: {") || block == "data: [DONE]" || block.starts_with(':'),
                "{fault}: {block:?}"
            );
        }
        assert!(!normal.contains("\n\n\n"), "{fault}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_lines_and_invalid_utf8_pass_through() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_TOKENS", "100000000/1m")]).await;
    let user = app.user().await;
    for fault in ["long-line:10485760", "invalid-utf8"] {
        let mut body = chat(&format!("[[sim fault={fault} tokens=5]]"));
        body["stream_options"] = json!({"include_usage": true});
        let expected = direct(&app, "/v1/chat/completions", &body).await;
        let got = open(&user, "/v1/chat/completions", body).await.bytes().await.unwrap();
        assert!(got == expected, "{fault}: {} and {} bytes", got.len(), expected.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_found_wherever_the_engine_cuts_its_bytes() {
    let stream = b"data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7}}\n\ndata: [DONE]\n\n";
    let shown = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n";
    let pieces = stream.iter().map(|byte| vec![*byte]).collect();
    let engine = Scripted::start(pieces, MS(0)).await;
    let app = TestApp::with(&[("ENGINE_URL", &engine.url())]).await;
    let user = app.user().await;
    assert_eq!(read(&user, "/v1/chat/completions", chat("x")).await, shown);
    assert_eq!(super::usage_rows(&app).await, [("ok".to_owned(), 11, 7, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_its_last_line_ends_is_completed_and_a_torn_one_is_an_error() {
    let first = b"data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":null}]}\n\n";
    let engine = Scripted::start(vec![first.to_vec(), b"data: [DONE]".to_vec()], MS(20)).await;
    let app = TestApp::with(&[("ENGINE_URL", &engine.url())]).await;
    let user = app.user().await;
    let text = read(&user, "/v1/chat/completions", chat("x")).await;
    assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");

    let engine = Scripted::start(vec![first.to_vec(), b"data: {\"choices\":[{\"del".to_vec()], MS(20)).await;
    let app = TestApp::with(&[("ENGINE_URL", &engine.url())]).await;
    let user = app.user().await;
    let text = read(&user, "/v1/chat/completions", chat("x")).await;
    assert_eq!(last_error(&text)["code"], "engine_stream_truncated");
    assert_eq!(events(&text).len(), 2, "the torn event is not shown: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_embeddings_pass_through() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let models = user.get("/v1/models").await.expect(200).json();
    assert_eq!(models["data"][0]["id"], "sim-small");
    assert_eq!(user.get("/v1/models/sim-small").await.expect(200).json()["id"], "sim-small");
    let missing = user.get("/v1/models/org/none").await.expect(404).json();
    assert_eq!(missing["error"]["code"], "model_not_found");
    assert_eq!(app.engine.stats().last_request.unwrap().uri, "/v1/models/org/none");
    let body = json!({"model": "sim-embedding", "input": ["a", "b"], "dimensions": 8});
    let answer = user.post("/v1/embeddings", body).await.expect(200).json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_costs_little_memory_and_is_cut() {
    let app = TestApp::with(&[("HTTP_WRITE_STALL_TIMEOUT", "1s"), ("ENGINE_IDLE_TIMEOUT", "500ms")]).await;
    let user = app.user().await;
    // Warm, so that what is measured is the stream.
    read(&user, "/v1/chat/completions", chat("[[sim tokens=100 chunk-bytes=4096]]")).await;
    let before = resident_kib();
    let response = open(&user, "/v1/chat/completions", chat("[[sim tokens=50000 chunk-bytes=4096]]")).await;
    app.engine.wait_for(S(10), |stats| stats.cancelled == 1).await;
    let grown = resident_kib().saturating_sub(before);
    // The sockets' buffers are the kernel's; 200 MB would show.
    assert!(grown < 20_000, "{grown} KiB");
    nothing_is_left(&app).await;
    drop(response);
    assert_eq!(super::usage_rows(&app).await.last().unwrap().0, "client_abort", "the engine is not to blame");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_pauses_is_not_taken_for_an_engine_that_stalls() {
    let app = TestApp::with(&[("ENGINE_IDLE_TIMEOUT", "300ms")]).await;
    let user = app.user().await;
    let mut response =
        open(&user, "/v1/chat/completions", chat("[[sim tokens=4000 chunk-bytes=4096]]")).await;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        // Twice so long that the buffers between are full and nothing moves.
        if text.is_empty() || (text.len() < 8 << 20 && text.len() + chunk.len() >= 8 << 20) {
            tokio::time::sleep(MS(1_000)).await;
        }
        text.extend_from_slice(&chunk);
    }
    assert!(text.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&text[text.len() - 300..]));
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
