//! Failures that users of other gateways reported, one test each: what `docs/ai-proxy.md` lists and no other file here shows.

use std::time::Instant;

use axum::{body::Body, http::Request};
use engine_sim::Sim;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{
    MS, S, STREAMING, chat, events, nothing_is_left, read,
    scripted::{Cutting, Scripted},
    streaming, usage_rows, whole,
};
use crate::support::{Deployment, Process, TestApp, eventually, free_port, ready};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_that_leave_before_the_first_poll_leave_nothing_behind() {
    let vars = |hold| {
        [
            ("AI_CONCURRENT_STREAMS", "1000"),
            ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
            ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
            ("ENGINE_HEADER_HOLD", hold),
        ]
    };
    // With the engine's first event there; and with the hold over, and the engine still silent, or not even asked.
    for (hold, fault, rounds) in [("60s", "stall:5", 4), ("100ms", "hang-after-headers", 1)] {
        let app = TestApp::with(&vars(hold)).await;
        let user = app.user().await;
        let router = api::router(app.state.clone());
        for round in 1..=rounds {
            let calls = (0..100).map(|i| {
                let route = STREAMING[i % 3];
                let mut request = Request::post(route)
                    .header("authorization", format!("Bearer {}", user.token()))
                    .header("content-type", "application/json")
                    .body(Body::from(streaming(route, &format!("[[sim fault={fault}]]")).to_string()))
                    .unwrap();
                request.extensions_mut().insert(server::Peer(([127, 0, 0, 1], 1).into()));
                let router = router.clone();
                async move {
                    let response = router.oneshot(request).await.unwrap();
                    assert_eq!(response.status(), 200);
                    // The head is there; nobody ever looks at the body.
                    drop(response);
                }
            });
            join_all(calls).await;
            let left = Instant::now();
            if fault == "stall:5" {
                app.engine.wait_for(S(5), |stats| stats.cancelled == 100 * round).await;
            }
            nothing_is_left(&app).await;
            println!("{fault}: a hundred bodies that nobody polled are gone after {:?}", left.elapsed());
        }
        let rows = usage_rows(&app).await;
        assert_eq!(rows.len() as u64, 100 * rounds);
        assert!(rows.iter().all(|row| row.0 == "client_abort"), "{rows:?}");
        let stats = app.engine.wait_for(S(10), |stats| stats.connections_open == 0).await;
        assert_eq!((stats.completed, stats.cancelled), (0, stats.requests_total));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_the_same_wherever_the_engine_cuts_its_bytes_in_two() {
    let stream = "\u{feff}data: {\"choices\":[{\"delta\":{\"content\":\"漢字😀é🎉\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7}}\n\ndata: [DONE]\n\n";
    let shown = "data: {\"choices\":[{\"delta\":{\"content\":\"漢字😀é🎉\"}}]}\n\ndata: [DONE]\n\n";
    for ends in ["\n", "\r\n", "\r"] {
        let (stream, shown) = (stream.replace('\n', ends), shown.replace('\n', ends));
        let cuts = stream.len();
        let engine = Cutting::start(stream.clone().into_bytes()).await;
        let app = TestApp::with(&[
            ("ENGINE_URL", &engine.url()),
            ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
            ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
            ("AI_CONCURRENT_STREAMS", "1000"),
        ])
        .await;
        let user = app.user().await;
        let mut answered = 0;
        while answered < cuts {
            let texts = join_all((0..20).map(|_| read(&user, CHAT, chat("x")))).await;
            for text in &texts {
                // After the last event nothing goes out, not even the LF of a CRLF that was cut there: CR alone ends it.
                let text = if ends == "\r\n" && text.ends_with("\r\n\r") {
                    format!("{text}\n")
                } else {
                    text.clone()
                };
                assert_eq!(text, shown, "{ends:?}");
            }
            answered += texts.len();
        }
        let rows = usage_rows(&app).await;
        assert_eq!(rows.len(), answered);
        assert!(rows.iter().all(|row| *row == ("ok".to_owned(), 11, 7, false)), "{ends:?}: {rows:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_accepted_encoding_changes_a_stream() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = chat("[[sim tokens=30]] 漢字😀");
    let plain = read(&user, CHAT, body.clone()).await;
    assert!(plain.ends_with("data: [DONE]\n\n") && events(&plain).len() > 30, "{plain}");
    for accepted in ["zstd", "br", "gzip", "deflate", "zstd, br, gzip;q=0.5", "*", "identity;q=0, gzip"] {
        let request = user.request(Method::POST, CHAT).header("accept-encoding", accepted).json(&body);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{accepted}");
        assert!(!response.headers().contains_key("content-encoding"), "{accepted}");
        assert_eq!(response.headers()["cache-control"], "no-cache, no-transform", "{accepted}");
        let text = String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap();
        assert_eq!(text, plain, "{accepted}");
        let seen = app.engine.stats().last_request.unwrap();
        assert_eq!(seen.headers["accept-encoding"], "identity", "the engine is never asked for it");
    }
}

/// The real process and what it weighs.
async fn deployed(deployment: &Deployment, more: &[(&str, &str)]) -> (Process, String, String) {
    let port = free_port();
    let process = deployment.start("api", port, more);
    ready(port).await;
    let url = format!("http://127.0.0.1:{port}");
    let token = deployment.user_at(port).await.token().to_owned();
    (process, url, token)
}

async fn stream(url: &str, token: &str, prompt: &str) -> reqwest::Response {
    let request = reqwest::Client::new().post(format!("{url}{CHAT}")).bearer_auth(token);
    let response = request.json(&chat(prompt)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

/// Largest of what it weighs until `done`, above what it weighed before, in KiB.
async fn grown(process: &Process, before: u64, done: impl Fn() -> bool) -> u64 {
    let mut most = before;
    while !done() {
        most = most.max(process.memory_kib("VmRSS").unwrap());
        tokio::time::sleep(MS(10)).await;
    }
    most - before
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_flat_while_an_engine_pushes_200_mb_at_a_client_that_reads_nothing() {
    let deployment = Deployment::new().await;
    let (process, url, token) = deployed(&deployment, &[("HTTP_WRITE_STALL_TIMEOUT", "2s")]).await;
    // Warm, so that what is measured is the one stream.
    for _ in 0..3 {
        stream(&url, &token, "[[sim tokens=2000 chunk-bytes=4096]]").await.bytes().await.unwrap();
    }
    let before = process.memory_kib("VmRSS").unwrap();
    let unread = stream(&url, &token, "[[sim tokens=50000 chunk-bytes=4096]]").await;
    let engine: &Sim = &deployment.engine;
    let started = Instant::now();
    let grown = grown(&process, before, || {
        assert!(started.elapsed() < S(20), "it is not cut");
        engine.stats().cancelled == 1
    })
    .await;
    let bound = 6_000;
    println!(
        "200 MB for a client that reads nothing: {grown} of {bound} KiB, cut after {:?}",
        started.elapsed()
    );
    assert!(grown < bound, "{grown} KiB");
    assert!(started.elapsed() > S(1), "the client had its time");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_flat_over_256_mb_without_a_line_end_and_a_line_of_10_mib() {
    let deployment = Deployment::new().await;
    let (process, url, token) = deployed(&deployment, &[]).await;
    for _ in 0..3 {
        stream(&url, &token, "[[sim tokens=2000 chunk-bytes=4096]]").await.bytes().await.unwrap();
    }
    for (fault, at_least) in [("long-line:10485760", 10 << 20), ("no-newline:268435456", 256 << 20)] {
        let before = process.memory_kib("VmRSS").unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let reading = async {
            let mut response = stream(&url, &token, &format!("[[sim fault={fault}]]")).await;
            let mut length = 0;
            while let Some(chunk) = response.chunk().await.unwrap() {
                length += chunk.len();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            length
        };
        let (length, grown) = tokio::join!(
            reading,
            grown(&process, before, || done.load(std::sync::atomic::Ordering::Relaxed))
        );
        println!("{fault}: {length} bytes, {grown} KiB");
        assert!(length >= at_least, "{length}");
        // An event is held up to 1 MiB, and what it is copied together into; each size of that stays a while with the allocator.
        assert!(grown < 20_000, "{fault}: {grown} KiB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_billed_that_did_not_happen() {
    let app = TestApp::with(&[
        ("ENGINE_RETRIES", "0"),
        ("ENGINE_FIRST_TOKEN_TIMEOUT", "400ms"),
        ("ENGINE_RESPONSE_TIMEOUT", "1s"),
        // So slow that nothing comes back by itself.
        ("RATE_LIMIT_AI_TOKENS", "100000/1d"),
    ])
    .await;
    let user = app.user().await;
    let left = async || -> i64 {
        nothing_is_left(&app).await;
        let mut body = whole(CHAT, "x");
        body["max_tokens"] = json!(1);
        let answer = user.post(CHAT, body).await.expect(200);
        answer.header("x-ratelimit-remaining-tokens").parse().unwrap()
    };
    let before = left().await;
    let mut failed = 0;
    for fault in [
        "status:500",
        "status:404",
        "status:429",
        "html",
        "garbage:100",
        "gzip",
        "redirect",
        "reset-before-headers",
        "close-before-headers",
        "hang-before-headers",
        "hang-after-headers",
    ] {
        for stream in [true, false] {
            let mut body = chat(&format!("[[sim fault={fault}]] {}", "many words ".repeat(200)));
            body["stream"] = json!(stream);
            let answer = user.post(CHAT, body).await;
            assert!(answer.status >= 400, "{fault}");
            failed += 1;
            // Many failures in a row would open the breaker.
            user.post("/v1/embeddings", json!({"model": "m", "input": "x", "dimensions": 2}))
                .await
                .expect(200);
        }
    }
    // What was refused before the engine was asked.
    for (field, value) in [("n", json!(1_000)), ("messages", json!([])), ("max_tokens", json!(-1))] {
        let mut body = chat("x");
        body[field] = value;
        user.post(CHAT, body).await.expect(400);
    }
    let report = user.get("/v1/usage").await.expect(200).json();
    let row = |model: &str| {
        let rows = report["data"].as_array().unwrap();
        rows.iter().find(|row| row["model"] == model).unwrap().clone()
    };
    let chats = row("sim-small");
    assert_eq!((&chats["requests"], &chats["errors"]), (&json!(failed + 1), &json!(failed)));
    // Only the one that was answered cost something.
    assert_eq!(chats["completion_tokens"], 1);
    assert!(chats["prompt_tokens"].as_i64().unwrap() < 20, "{chats}");
    // Some short answers; each failure had reserved more than 1,400 tokens.
    eventually("what was reserved is back", S(5), async || before - left().await < 400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_who_leaves_while_no_engine_was_asked_nor_who_is_sent_away_by_a_shutdown_is_billed() {
    let app = TestApp::with(&[("SHUTDOWN_BUDGET", "2s")]).await;
    let user = app.user().await;
    let ask = |body: Value, cache: &str| {
        let request = user.request(Method::POST, CHAT).header("x-ai-cache", cache).json(&body);
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    };
    let same = whole(CHAT, "[[sim fault=hang-before-headers]] many words");
    let asks = ask(same.clone(), "on");
    app.engine.wait_for(S(5), |stats| stats.requests_open == 1).await;
    // It waits for the answer to the first one.
    let waits = ask(same, "on");
    eventually("it waits", S(5), async || app.state.ai.open() == 2).await;
    tokio::time::sleep(MS(200)).await;
    waits.abort();
    eventually("it has left", S(5), async || app.state.ai.open() == 1).await;
    assert_eq!(usage_rows(&app).await, [("client_abort".to_owned(), 0, 0, true)]);
    assert_eq!(app.engine.stats().requests_total, 1);

    let streams = ask(chat("[[sim fault=hang-after-headers]] many words"), "off");
    app.engine.wait_for(S(5), |stats| stats.requests_open == 2).await;
    app.lifecycle.begin_shutdown();
    app.lifecycle.run_until_stopped().await;
    assert_eq!((asks.await.unwrap(), streams.await.unwrap()), (503, 503));
    let drained = ("drained".to_owned(), 0, 0, true);
    assert_eq!(usage_rows(&app).await[1..], [drained.clone(), drained]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_and_a_prompt_that_is_too_long_are_told_in_the_engines_words() {
    for (status, code) in
        [("404 Not Found", "model_not_found"), ("400 Bad Request", "context_length_exceeded")]
    {
        let object = json!({"error": {
            "message": "said by the engine", "type": "invalid_request_error", "param": "model", "code": code,
        }});
        let engine = Scripted::refusing(status, &object.to_string()).await;
        let app = TestApp::with(&[("ENGINE_URL", &engine.url())]).await;
        let user = app.user().await;
        for body in [chat("x"), whole(CHAT, "x")] {
            let answer = user.post(CHAT, body).await.expect(status[..3].parse().unwrap());
            assert_eq!(answer.json(), object);
        }
        let rows = usage_rows(&app).await;
        assert!(rows.iter().all(|row| row.0 == "engine_error" && row.1 + row.2 == 0), "{rows:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_100_tokens_a_minute_gets_no_more_out_of_20_parallel_streams_on_two_replicas() {
    let app = TestApp::start().await;
    let other = app.replica();
    let (admin, user) = (app.admin().await, app.user().await);
    let made =
        user.post("/v1/api-keys", json!({"name": "metered", "scopes": ["ai"]})).await.expect(201).json();
    let key = app.anonymous().with_token(made["key"].as_str().unwrap());
    let path = format!("/v1/admin/api-keys/{}/limits", made["id"].as_str().unwrap());
    let limits = json!({"limits": {"ai-tokens": "100/1h", "ai-tokens-daily": "1000/1d"}});
    admin.send(admin.request(Method::PUT, &path).json(&limits)).await.expect(200);
    // Both replicas know the key: twenty that load it at once from the database would wait for connections.
    for replica in [&app, &other] {
        key.at(replica).get("/v1/models").await.expect(200);
    }
    let asked = app.engine.stats().requests_total;
    let mut body = chat("[[sim tokens=14 token-interval-ms=20]] 20 of these do not fit");
    body["max_tokens"] = json!(14);
    let answers = join_all((0..20).map(|i| {
        let key = key.at(if i % 2 == 0 { &app } else { &other });
        let body = &body;
        async move { key.post(CHAT, body.clone()).await }
    }))
    .await;
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!(answer.status, 429, "a clean refusal before any byte: {}", answer.text);
        assert_eq!(answer.header("content-type"), "application/json");
    }
    assert!(other.state.ai.flush_usage().await);
    let used: i64 = usage_rows(&app).await.iter().map(|row| row.1 + row.2).sum();
    assert!(answers.iter().any(|answer| answer.status == 200));
    assert!((1..=100).contains(&used), "{used} tokens were used of 100");
    let passed = answers.iter().filter(|answer| answer.status == 200).count() as u64;
    assert_eq!(app.engine.stats().requests_total - asked, passed, "the engine sees no other");
    // The user has a bucket apart.
    user.post(CHAT, body).await.expect(200);
    nothing_is_left(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permits_of_a_replica_that_crashed_end_by_themselves() {
    let deployment = Deployment::new().await;
    let limit = [
        ("AI_CONCURRENT_STREAMS", "1"),
        ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
        // So slow that nothing comes back by itself.
        ("RATE_LIMIT_AI_TOKENS", "100000/1d"),
    ];
    let (crashing, url, token) = deployed(&deployment, &limit).await;
    let port = free_port();
    let _other = deployment.start("api", port, &limit);
    ready(port).await;
    let ask = async || {
        let request =
            reqwest::Client::new().post(format!("http://127.0.0.1:{port}{CHAT}")).bearer_auth(&token);
        request.json(&chat("[[sim tokens=1]]")).send().await.unwrap().status().as_u16()
    };
    let held = stream(&url, &token, "[[sim fault=stall:2]]").await;
    let left: u64 = held.headers()["x-ratelimit-remaining-tokens"].to_str().unwrap().parse().unwrap();
    assert_eq!(ask().await, 429);
    crashing.signal(nix::sys::signal::Signal::SIGKILL);
    drop(held);
    deployment.engine.wait_for(S(5), |stats| stats.requests_open == 0).await;
    assert_eq!(ask().await, 429, "nobody gave the permit back");

    // When it ends, as Redis has it: not later than a lease of 90 s from its last renewal.
    let mut redis = deployment.redis.connection().await;
    let mut keys = db::redis_client::cmd("KEYS");
    keys.arg(format!("{}*:sem:*", deployment.redis.prefix));
    let keys: Vec<String> = keys.query_async(&mut redis).await.unwrap();
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    let mut range = db::redis_client::cmd("ZRANGE");
    range.arg(key).arg(0).arg(-1).arg("WITHSCORES");
    let permits: Vec<(String, f64)> = range.query_async(&mut redis).await.unwrap();
    let [(id, until)] = permits.as_slice() else { panic!("{permits:?}") };
    let (seconds, micros): (u64, u64) = db::redis_client::cmd("TIME").query_async(&mut redis).await.unwrap();
    let now = (seconds * 1_000_000 + micros) as f64;
    assert!((now..=now + 90e6).contains(until), "{until} {now}");
    // Most of the lease goes by.
    let mut sooner = db::redis_client::cmd("ZADD");
    sooner.arg(key).arg(now + 2e6).arg(id);
    sooner.query_async::<()>(&mut redis).await.unwrap();
    assert_eq!(ask().await, 429, "it holds to its end");
    eventually("the lease is over", S(8), async || ask().await == 200).await;

    // What the stream had reserved stays taken: as many tokens as it may have used. Nobody knows how many, so there is no row.
    let answer = stream(&format!("http://127.0.0.1:{port}"), &token, "[[sim tokens=1]]").await;
    let now: u64 = answer.headers()["x-ratelimit-remaining-tokens"].to_str().unwrap().parse().unwrap();
    // It reserves a thousand itself, as the lost one did: had that been given back, as many would be left now as then.
    assert!(now + 500 < left, "{now} of {left}");
    answer.bytes().await.unwrap();
    let rows = sqlx::query_scalar::<_, String>("select outcome from usage_event");
    let rows = rows.fetch_all(deployment.database.pool()).await.unwrap();
    assert!(rows.iter().all(|outcome| outcome == "ok"), "{rows:?}");
}
