//! What is told about a request: its trace, its metrics, its line in the log. The real binary.

use serde_json::{Value, json};

use super::{S, chat, events};
use crate::support::{Collector, Deployment, Process, eventually, free_port, metric, ready};

const CHAT: &str = "/v1/chat/completions";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// Lines of the log with this message.
fn lines(process: &Process, message: &str) -> Vec<Value> {
    let output = process.output();
    let lines = output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["message"] == message).collect()
}

/// `00f0` as bytes.
fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_client_through_the_api_to_the_engine_and_to_the_collector() {
    let deployment = Deployment::new().await;
    let collector = Collector::start().await;
    let port = free_port();
    let otlp = format!("http://{}", collector.address);
    let mut api = deployment.start("api", port, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &otlp)]);
    ready(port).await;
    let url = format!("http://127.0.0.1:{port}");
    let token = deployment.user_at(port).await.token().to_owned();
    let mut engines = vec![];
    for stream in [true, false] {
        let mut body = chat("[[sim tokens=5]] a private question");
        body["stream"] = json!(stream);
        let request = reqwest::Client::new().post(format!("{url}{CHAT}")).bearer_auth(&token).json(&body);
        let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
        request.send().await.unwrap().text().await.unwrap();
        let seen = deployment.engine.stats().last_request.unwrap();
        let parent = seen.headers["traceparent"].to_str().unwrap().to_owned();
        let parts: Vec<_> = parent.split('-').map(str::to_owned).collect();
        assert_eq!(
            (parts[0].as_str(), parts[1].as_str(), parts[3].as_str()),
            ("00", TRACE, "01"),
            "{parent}"
        );
        assert_ne!(parts[2], CALLER, "the engine's parent is a span of ours");
        engines.push(parts[2].clone());
    }
    api.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(api.wait(S(10)).await.0.success());
    let (spans, text) = (collector.bytes("/v1/traces"), collector.text("/v1/traces"));
    let has = |id: &str| spans.windows(id.len() / 2).any(|window| window == bytes(id));
    assert!(has(TRACE) && has(CALLER), "the request's span is a child of the caller's");
    assert!(engines.iter().all(|id| has(id)), "the span that the engine was told of is there");
    for part in [
        "chat sim-small",
        "gen_ai.operation.name",
        "gen_ai.request.model",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "outcome",
    ] {
        assert!(text.contains(part), "{part}");
    }
    assert!(!text.contains("private question"), "no content");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_a_request_has_one_line_in_the_log_and_its_metrics_by_the_names_of_opentelemetry() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let api = deployment.start("api", port, &[("ENGINE_IDLE_TIMEOUT", "300ms")]);
    ready(port).await;
    let url = format!("http://127.0.0.1:{port}");
    let token = deployment.user_at(port).await.token().to_owned();
    let client = reqwest::Client::new();
    let ask = async |id: &str, body: Value, wish: &str| {
        let request = client.post(format!("{url}{CHAT}")).bearer_auth(&token).json(&body);
        request.header("x-request-id", id).header("x-ai-cache", wish).send().await.unwrap()
    };
    let mut whole = chat("[[sim tokens=4]]");
    whole["stream"] = json!(false);
    ask("stream-that-ends-well", chat("[[sim tokens=7 first-token-ms=30]]"), "off")
        .await
        .text()
        .await
        .unwrap();
    ask("answer-in-one-piece", whole.clone(), "on").await.text().await.unwrap();
    ask("answer-of-the-cache", whole, "on").await.text().await.unwrap();
    ask("engine-that-fails", chat("[[sim fault=status:500]]"), "off").await.text().await.unwrap();
    let stalled = ask("engine-that-stalls", chat("[[sim fault=stall:3]]"), "off").await.text().await.unwrap();
    assert!(events(&stalled).len() > 3, "{stalled}");
    let mut left = ask("client-that-leaves", chat("[[sim token-interval-ms=50 tokens=100]]"), "off").await;
    left.chunk().await.unwrap().unwrap();
    drop(left);
    eventually("six requests have ended", S(5), async || lines(&api, "ai request ended").len() == 6).await;

    let ended = lines(&api, "ai request ended");
    let expected = [
        ("stream-that-ends-well", "ok", false, false, Some(7)),
        ("answer-in-one-piece", "ok", false, false, Some(4)),
        ("answer-of-the-cache", "ok", false, true, Some(0)),
        ("engine-that-fails", "engine_error", true, false, Some(0)),
        ("engine-that-stalls", "timeout", true, false, None),
        ("client-that-leaves", "client_abort", true, false, None),
    ];
    for (line, (id, outcome, estimated, cached, tokens)) in ended.iter().zip(expected) {
        assert_eq!((&line["request_id"], &line["outcome"]), (&json!(id), &json!(outcome)), "{line}");
        assert_eq!((&line["estimated"], &line["cached"]), (&json!(estimated), &json!(cached)), "{line}");
        assert_eq!((&line["model"], &line["operation"]), (&json!("sim-small"), &json!("chat")), "{line}");
        assert!(line["duration_ms"].is_u64() && line["prompt_tokens"].is_u64(), "{line}");
        match tokens {
            Some(tokens) => assert_eq!(line["completion_tokens"], tokens, "{line}"),
            None => assert!(line["completion_tokens"].as_u64().unwrap() > 0, "{line}"),
        }
        let first = line.get("first_token_ms").and_then(Value::as_u64);
        let streamed = matches!(id, "stream-that-ends-well" | "engine-that-stalls" | "client-that-leaves");
        assert_eq!(first.is_some(), streamed, "{line}");
    }
    assert!(ended[0]["first_token_ms"].as_u64().unwrap() >= 25, "{}", ended[0]);
    assert!(ended[0]["duration_ms"].as_u64() >= ended[0]["first_token_ms"].as_u64());

    let model = r#"gen_ai_request_model="sim-small""#;
    let count = async |name: &str, labels: &str| metric(port, name, labels).await as u64;
    for (outcome, requests) in [("ok", 3), ("engine_error", 1), ("timeout", 1), ("client_abort", 1)] {
        let labels = format!(r#"outcome="{outcome}""#);
        assert_eq!(
            count("gen_ai_client_operation_duration_seconds_count", &labels).await,
            requests,
            "{outcome}"
        );
    }
    assert_eq!(count("gen_ai_client_time_to_first_chunk_seconds_count", model).await, 3);
    // Of the one who left there may have been one event only.
    assert!(count("gen_ai_client_time_per_output_chunk_seconds_count", model).await >= 2);
    let all = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    for name in [
        "gen_ai_client_operation_duration_seconds",
        "gen_ai_client_time_to_first_chunk_seconds",
        "gen_ai_client_time_per_output_chunk_seconds",
        "gen_ai_client_token_usage",
    ] {
        let lines: Vec<_> = all.lines().filter(|line| line.starts_with(&format!("{name}_count{{"))).collect();
        for label in [model, r#"engine="default""#, r#"outcome="ok""#, r#"outcome="timeout""#] {
            assert!(lines.iter().any(|line| line.contains(label)), "{name} {label}: {lines:#?}");
        }
        let labelled =
            |line: &&str| ["gen_ai_request_model=", "engine=", "outcome="].iter().all(|l| line.contains(l));
        assert!(lines.iter().all(labelled), "{lines:#?}");
    }
    assert!(all.contains("gen_ai_client_token_usage_bucket{"), "a histogram");
    let cached = r#"engine="cache""#;
    assert_eq!(count("gen_ai_client_operation_duration_seconds_count", cached).await, 1);
    let tokens = metric(port, "gen_ai_client_token_usage_sum", r#"gen_ai_token_type="output""#).await;
    let told: u64 = ended.iter().map(|line| line["completion_tokens"].as_u64().unwrap()).sum();
    assert_eq!(tokens as u64, told, "metric and log agree");
    assert_eq!(count("ai_requests_open", "").await, 0);
    for word in ["hit", "miss"] {
        assert_eq!(count("ai_cache_requests_total", word).await, 1, "{word}");
    }
    assert!(!all.contains("@example.com") && !all.contains("user_id"), "never by user");
}

/// A run is made by the worker, in the trace of the request that asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_has_its_trace_its_line_in_the_log_and_its_metrics_too() {
    let deployment = Deployment::new().await;
    let collector = Collector::start().await;
    let (port, worker_port) = (free_port(), free_port());
    let otlp = [("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address))];
    let otlp = otlp.each_ref().map(|(name, value)| (*name, value.as_str()));
    let _api = deployment.start("api", port, &otlp);
    let worker = deployment.start("worker", worker_port, &otlp);
    ready(port).await;
    ready(worker_port).await;
    let user = deployment.user_at(port).await;
    let body = json!({"model": "sim-small", "messages": [{"role": "user", "content": "[[sim tokens=7]]"}]});
    let request = user.request(reqwest::Method::POST, "/v1/runs").json(&body);
    let request = request.header("traceparent", format!("00-{TRACE}-{CALLER}-01"));
    user.send(request.header("x-request-id", "a-run-with-a-trace")).await.expect(202);
    eventually("the run has ended", S(20), async || lines(&worker, "run ended").len() == 1).await;

    let line = &lines(&worker, "run ended")[0];
    assert_eq!(
        (&line["request_id"], &line["outcome"], &line["engine"], &line["model"]),
        (&json!("a-run-with-a-trace"), &json!("ok"), &json!("default"), &json!("sim-small")),
        "{line}"
    );
    assert_eq!(line["completion_tokens"], 7, "{line}");
    let parent = deployment.engine.stats().last_request.unwrap().headers["traceparent"].clone();
    let parent = parent.to_str().unwrap();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && !parent.contains(CALLER), "{parent}");
    let labels =
        r#"gen_ai_operation_name="chat",gen_ai_request_model="sim-small",engine="default",outcome="ok""#;
    for name in ["operation_duration_seconds", "time_to_first_chunk_seconds", "time_per_output_chunk_seconds"]
    {
        let count = metric(worker_port, &format!("gen_ai_client_{name}_count"), labels).await;
        assert_eq!(count as u64, 1, "{name}");
    }
    let tokens = format!(r#"{labels},gen_ai_token_type="output""#);
    assert_eq!(metric(worker_port, "gen_ai_client_token_usage_sum", &tokens).await as u64, 7);
}

/// Nobody takes its connections: they are not even refused.
async fn deaf() -> (tokio::net::TcpListener, Vec<tokio::net::TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut waiting = Vec::new();
    let connect = || tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    while let Ok(connected) = tokio::time::timeout(std::time::Duration::from_millis(300), connect()).await {
        waiting.push(connected.unwrap());
    }
    (listener, waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_time_that_is_up_is_counted_under_its_name_and_so_is_one_that_another_engine_makes_good() {
    let (deaf, _waiting) = deaf().await;
    let deployment = Deployment::new().await;
    let port = free_port();
    let engines = format!("deaf=http://{}/v1", deaf.local_addr().unwrap());
    let _api = deployment.start(
        "api",
        port,
        &[
            ("ENGINES", &engines),
            ("ENGINE_MODELS", "deaf=deaf,both=deaf|default,*=default"),
            ("ENGINE_CONNECT_TIMEOUT", "300ms"),
            ("ENGINE_FIRST_TOKEN_TIMEOUT", "2s"),
            ("ENGINE_IDLE_TIMEOUT", "500ms"),
            ("ENGINE_STREAM_TIMEOUT", "3s"),
            ("ENGINE_RESPONSE_TIMEOUT", "1s"),
            ("ENGINE_RETRIES", "1"),
        ],
    );
    ready(port).await;
    let user = deployment.user_at(port).await;
    let counted = async |timeout: &str, engine: &str| {
        let labels = format!(r#"timeout="{timeout}",engine="{engine}""#);
        metric(port, "ai_engine_timeouts_total", &labels).await as u64
    };
    let ask = async |body: Value, status: u16| {
        let answer = user.post(CHAT, body).await.expect(status);
        assert!(status == 502 || answer.text.contains("engine_timeout"), "{}", answer.text);
    };
    for (timeout, prompt, status) in [
        ("first_token", "[[sim fault=hang-after-headers]]", 504),
        ("idle", "[[sim fault=stall:3]]", 200),
        ("total", "[[sim tokens=1000 token-interval-ms=100]]", 200),
    ] {
        ask(chat(prompt), status).await;
        assert_eq!(counted(timeout, "default").await, 1, "{timeout}");
    }
    let mut whole = chat("[[sim fault=hang-before-headers]]");
    whole["stream"] = json!(false);
    ask(whole, 504).await;
    assert_eq!(counted("response", "default").await, 1);
    let mut body = chat("[[sim tokens=1]]");
    body["model"] = json!("both");
    assert!(user.post(CHAT, body.clone()).await.expect(200).text.contains("[DONE]"));
    assert_eq!(counted("connect", "deaf").await, 1, "another engine has answered");
    body["model"] = json!("deaf");
    ask(body, 502).await;
    assert_eq!(counted("connect", "deaf").await, 3, "asked twice");
    let all: u64 = metric(port, "ai_engine_timeouts_total", "").await as u64;
    assert_eq!(all, 7, "each once");
}
