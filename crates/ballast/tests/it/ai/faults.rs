//! Engines that fail.

use std::time::Instant;

use engine_sim::Fault;
use serde_json::{Value, json};

use super::{
    MS, S, STREAMING, chat, events, last_error, nothing_is_left, open, read, scripted::Scripted, streaming,
    usage_rows, whole,
};
use crate::support::{Answer, TestApp, within};

/// Short times, so that a test of all faults takes seconds.
const SHORT: [(&str, &str); 6] = [
    ("ENGINE_FIRST_TOKEN_TIMEOUT", "700ms"),
    ("ENGINE_IDLE_TIMEOUT", "500ms"),
    ("ENGINE_RESPONSE_TIMEOUT", "1s"),
    ("ENGINE_CONNECT_TIMEOUT", "500ms"),
    ("STREAM_HEARTBEAT", "100ms"),
    ("SHUTDOWN_BUDGET", "2s"),
];

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_event_every_failure_has_its_status() {
    let app = TestApp::with(&SHORT).await;
    let user = app.user().await;
    let redirected = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let redirect = format!("redirect:http://{}/", redirected.local_addr().unwrap());
    for (fault, status, code) in [
        ("close-before-headers", 502, "engine_connection_lost"),
        ("reset-before-headers", 502, "engine_connection_lost"),
        ("hang-before-headers", 504, "engine_timeout"),
        ("hang-after-headers", 504, "engine_timeout"),
        ("comments:50", 504, "engine_timeout"),
        ("stall:0", 200, ""),
        ("status:400", 400, "engine_refused"),
        ("status:401", 502, "engine_error"),
        ("status:403", 502, "engine_error"),
        ("status:404", 404, "engine_refused"),
        ("status:429", 429, "engine_refused"),
        ("status:500", 502, "engine_error"),
        ("status:503", 503, "engine_error"),
        ("garbage:4096", 502, "engine_bad_answer"),
        ("html", 502, "engine_bad_answer"),
        ("gzip", 502, "engine_bad_answer"),
        (&redirect, 502, "engine_bad_answer"),
    ] {
        // Many failures in a row would open the breaker.
        read(&user, "/v1/chat/completions", chat("[[sim tokens=1]]")).await;
        let started = Instant::now();
        let prompt = format!("[[sim fault={fault}]]");
        let answer = user.post("/v1/chat/completions", chat(&prompt)).await.expect(status);
        assert!(started.elapsed() < S(10), "{fault}: {:?}", started.elapsed());
        if status == 200 {
            assert_eq!(last_error(&answer.text)["code"], "engine_timeout", "{fault}");
            continue;
        }
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], code, "{fault}: {error}");
        assert!(!error["message"].as_str().unwrap().contains("127.0.0.1"), "{error}");
        if status == 429 {
            assert_eq!((answer.header("retry-after"), &error["type"]), ("1", &json!("rate_limit_error")));
        }
        nothing_is_left(&app).await;
    }
    let nobody = tokio::time::timeout(MS(50), redirected.accept()).await;
    assert!(nobody.is_err(), "the redirect was not followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_first_event_the_part_is_delivered_and_then_an_error_and_a_clean_end() {
    let app = TestApp::with(&SHORT).await;
    let user = app.user().await;
    for route in STREAMING {
        for (fault, code) in [
            ("stall:3", "engine_timeout"),
            ("reset:8", "engine_connection_lost"),
            ("half-chunk:8", "engine_connection_lost"),
        ] {
            let body = streaming(route, &format!("[[sim fault={fault} token-interval-ms=5]]"));
            let started = Instant::now();
            let text = read(&user, route, body).await;
            assert!(started.elapsed() < S(10), "{route} {fault}");
            assert!(events(&text).len() >= 4, "{route} {fault}: {text}");
            let error = last_error(&text);
            assert_eq!(error["code"], code, "{route} {fault}: {text}");
            assert!(!text.contains("torn"), "half an event is not shown: {text}");
            match route {
                "/v1/chat/completions" => assert!(text.contains("\n\ndata: {\"error\":"), "{text}"),
                "/v1/responses" => {
                    assert!(text.contains("\n\nevent: error\ndata: {"), "{text}");
                    assert_eq!(error["sequence_number"], events(&text).len() - 1);
                }
                // A heartbeat may stand before it, without a blank line.
                _ => assert!(text.contains("\nevent: error\ndata: {\"error\":"), "{text}"),
            }
            nothing_is_left(&app).await;
        }
    }
    let outcomes: Vec<_> = usage_rows(&app).await.into_iter().map(|row| row.0).collect();
    assert_eq!(outcomes, ["timeout", "engine_error", "engine_error"].repeat(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_hold_a_failure_is_told_inside_the_stream() {
    let mut vars = SHORT.to_vec();
    vars.push(("ENGINE_HEADER_HOLD", "100ms"));
    let app = TestApp::with(&vars).await;
    let user = app.user().await;
    for (fault, code) in [
        ("hang-before-headers", "engine_timeout"),
        ("hang-after-headers", "engine_timeout"),
        ("comments:50", "engine_timeout"),
    ] {
        let text = read(&user, "/v1/chat/completions", chat(&format!("[[sim fault={fault}]]"))).await;
        assert!(text.contains(": ping\n\n"), "{fault}: {text}");
        assert_eq!(last_error(&text)["code"], code, "{fault}: {text}");
        nothing_is_left(&app).await;
    }
    let text = read(&user, "/v1/chat/completions", chat("[[sim fault=status:500 first-token-ms=300]]")).await;
    assert_eq!(last_error(&text)["code"], "engine_error");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engines_own_error_inside_a_stream_is_passed_on_and_counted() {
    let app = TestApp::with(&SHORT).await;
    let user = app.user().await;
    for route in STREAMING {
        let text = read(&user, route, streaming(route, "[[sim fault=in-band-error:3]]")).await;
        assert_eq!(text.matches("simulated fault").count(), 1, "the engine's and no second one: {text}");
        assert!(!text.contains("[DONE]") && !text.contains("engine_stream_truncated"), "{text}");
    }
    let text = read(&user, "/v1/chat/completions", chat("[[sim fault=named-error:3]]")).await;
    assert!(text.contains("event: error\ndata: "), "{text}");
    assert!(usage_rows(&app).await.iter().all(|row| row.0 == "engine_error"));
    // As the first event it is as good as a status.
    let answer = user.post("/v1/chat/completions", chat("[[sim fault=named-error:0]]")).await;
    assert!(answer.status == 502 || answer.text.contains("event: error"), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_unfollowed_done_is_no_error() {
    let app = TestApp::with(&SHORT).await;
    let user = app.user().await;
    let text = read(&user, "/v1/chat/completions", chat("[[sim fault=no-done]]")).await;
    assert!(text.contains("\"finish_reason\":\"stop\"") && !text.contains("error"), "{text}");
    let started = Instant::now();
    let text = read(&user, "/v1/chat/completions", chat("[[sim fault=done-open]]")).await;
    assert!(text.ends_with("data: [DONE]\n\n") && started.elapsed() < S(10), "{text}");
    // The responses protocol has no other end than its last event.
    let text = read(&user, "/v1/responses", streaming("/v1/responses", "[[sim fault=no-done]]")).await;
    assert_eq!(last_error(&text)["code"], "engine_stream_truncated");
    let started = Instant::now();
    let text = read(&user, "/v1/responses", streaming("/v1/responses", "[[sim fault=done-open]]")).await;
    assert!(text.contains("response.completed") && started.elapsed() < S(10), "{text}");
    nothing_is_left(&app).await;
    let outcomes: Vec<_> = usage_rows(&app).await.into_iter().map(|row| row.0).collect();
    assert_eq!(outcomes, ["ok", "ok", "engine_error", "ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_streams_fail_with_a_status_too() {
    let app = TestApp::with(&SHORT).await;
    let user = app.user().await;
    for route in ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"] {
        for (fault, status, code) in [
            ("hang-before-headers", 504, "engine_timeout"),
            ("reset-before-headers", 502, "engine_connection_lost"),
            ("reset:1", 502, "engine_connection_lost"),
            ("stall:0", 504, "engine_timeout"),
            ("status:500", 502, "engine_error"),
            ("status:422", 422, "engine_refused"),
            ("html", 502, "engine_bad_answer"),
            ("garbage:4096", 502, "engine_bad_answer"),
            ("gzip", 502, "engine_bad_answer"),
            ("redirect", 502, "engine_bad_answer"),
        ] {
            let prompt = format!("[[sim fault={fault}]]");
            let body = match route {
                "/v1/embeddings" => json!({"model": "sim-embedding", "input": prompt, "dimensions": 64}),
                _ => whole(route, &prompt),
            };
            let answer = user.post(route, body).await.expect(status);
            // Many failures in a row would open the breaker.
            user.post("/v1/embeddings", json!({"model": "m", "input": "x"})).await.expect(200);
            assert_eq!(answer.json()["error"]["code"], code, "{route} {fault}");
            nothing_is_left(&app).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_begin_is_tried_once_more_and_then_no_more() {
    let app = TestApp::with(&SHORT).await;
    let user = app.user().await;
    for (fault, tries) in
        [("status:503", 2), ("reset-before-headers", 2), ("status:500", 1), ("status:429", 1), ("html", 1)]
    {
        app.engine.set_defaults(&format!("fault={fault} times=1"));
        let before = app.engine.stats().requests_total;
        let answer = user.post("/v1/chat/completions", chat("x")).await;
        let asked = app.engine.stats().requests_total - before;
        assert_eq!((asked, answer.status == 200), (tries, tries == 2), "{fault}: {}", answer.text);
        app.engine.set_defaults(&format!("fault={fault} times=5"));
        let before = app.engine.stats().requests_total;
        user.post("/v1/chat/completions", chat("x")).await;
        assert_eq!(app.engine.stats().requests_total - before, tries, "{fault}");
        app.engine.clear_defaults();
        read(&user, "/v1/chat/completions", chat("x")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_down_is_not_asked_again_and_again_and_is_found_when_it_is_back() {
    let app = TestApp::with(&SHORT).await;
    let user = app.user().await;
    app.engine.set_defaults("fault=refuse:60000");
    let mut statuses = vec![];
    for _ in 0..6 {
        statuses.push(user.post("/v1/chat/completions", chat("x")).await.status);
    }
    assert_eq!(statuses[0], 502, "{statuses:?}");
    let started = Instant::now();
    let answer = user.post("/v1/chat/completions", chat("x")).await.expect(503);
    assert!(started.elapsed() < S(2), "{:?}", started.elapsed());
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["error"]["code"], "engine_unavailable");
    user.get("/v1/me").await.expect(200);
    app.engine.clear_defaults();
    within("the engine is found again", S(10), async || {
        user.post("/v1/chat/completions", chat("x")).await.status == 200
    })
    .await;
}

/// An engine that still sends comments, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn comments_do_not_count_as_life() {
    let mut pieces = vec![b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n".to_vec()];
    pieces.extend(vec![b": x\n\n".to_vec(); 300]);
    let engine = Scripted::start(pieces, MS(50)).await;
    let app = TestApp::with(&[("ENGINE_URL", &engine.url()), ("ENGINE_IDLE_TIMEOUT", "300ms")]).await;
    let user = app.user().await;
    let started = Instant::now();
    let text = read(&user, "/v1/chat/completions", chat("x")).await;
    assert!(started.elapsed() < S(10), "{:?}", started.elapsed());
    assert!(text.contains(": x\n\n"), "they are passed on: {text}");
    assert_eq!(last_error(&text)["code"], "engine_timeout", "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_a_longest_time() {
    let app = TestApp::with(&[("ENGINE_STREAM_TIMEOUT", "1s")]).await;
    let user = app.user().await;
    for body in [
        chat("[[sim token-interval-ms=50 tokens=1000]]"),
        chat("[[sim tokens=100000 token-interval-ms=0.1]]"),
    ] {
        let started = Instant::now();
        let text = read(&user, "/v1/chat/completions", body).await;
        assert!((MS(900)..S(10)).contains(&started.elapsed()), "{:?}", started.elapsed());
        assert_eq!(last_error(&text)["code"], "engine_timeout");
        nothing_is_left(&app).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_any_line_end_passes_in_flat_memory() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let mut response = open(&user, "/v1/chat/completions", chat("[[sim fault=no-newline:67108864]]")).await;
    let mut length = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        length += chunk.len();
    }
    assert!(length > 64 << 20, "{length}");
    nothing_is_left(&app).await;
}

/// Whatever the engine does, the client gets an answer that ends, and nothing stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_the_engine_hangs_breaks_or_leaks() {
    let mut vars = SHORT.to_vec();
    vars.push(("ENGINE_HEADER_HOLD", "300ms"));
    let app = TestApp::with(&vars).await;
    let user = app.user().await;
    for fault in Fault::known() {
        let fault = match fault.split(':').next().unwrap() {
            "refuse" => continue,
            "no-newline" => "no-newline:1000000".to_owned(),
            "long-line" => "long-line:3000000".to_owned(),
            _ => fault,
        };
        for route in STREAMING {
            for body in [
                streaming(route, &format!("[[sim fault={fault} tokens=8]]")),
                whole(route, &format!("[[sim fault={fault} tokens=8]]")),
            ] {
                let started = Instant::now();
                // Not held against the API's description: what an engine behind the passthrough says may be anything.
                let request = user.request(reqwest::Method::POST, route).json(&body);
                let answer = Answer::read(request.send().await.unwrap()).await;
                assert!(started.elapsed() < S(15), "{route} {fault}");
                assert_ne!(answer.status, 500, "{route} {fault}: {}", answer.text);
                if answer.status != 200 {
                    let body: Value = answer.json();
                    assert!(body["error"]["message"].is_string(), "{route} {fault}: {body}");
                }
            }
        }
        nothing_is_left(&app).await;
    }
}
