//! Clients that leave.

use std::time::Instant;

use engine_sim::Phase;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{MS, S, STREAMING, chat, nothing_is_left, open, read, streaming, usage_rows, whole};
use crate::support::TestApp;

/// From the client's leaving to the engine's noticing. The promise is 250 ms; a loaded machine gets some more.
const SOON: std::time::Duration = std::time::Duration::from_millis(1_000);

#[tokio::test(flavor = "multi_thread")]
async fn leaving_before_the_engines_head_cancels_on_every_route() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let prompt = "[[sim fault=hang-before-headers]]";
    let mut requests: Vec<_> = STREAMING.iter().map(|route| (*route, streaming(route, prompt))).collect();
    requests.extend(STREAMING.iter().map(|route| (*route, whole(route, prompt))));
    requests.push(("/v1/embeddings", json!({"model": "m", "input": prompt})));
    for (n, (route, body)) in requests.into_iter().enumerate() {
        let request = user.request(Method::POST, route).json(&body).send();
        tokio::select! {
            answer = request => panic!("{route}: {answer:?}"),
            _ = app.engine.wait_for(S(5), |stats| stats.requests_open == 1) => {}
        }
        let left = Instant::now();
        let stats = app.engine.wait_for(SOON, |stats| stats.cancelled == n as u64 + 1).await;
        assert_eq!(stats.cancellations.back().unwrap().phase, Phase::BeforeHeaders, "{route}");
        println!("{route}: cancelled after {:?}", left.elapsed());
        nothing_is_left(&app).await;
    }
    assert!(usage_rows(&app).await.iter().all(|row| row.0 == "client_abort" && row.1 > 0 && row.3));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_before_the_first_token_and_mid_stream_cancels_on_every_route() {
    let app = TestApp::with(&[("ENGINE_HEADER_HOLD", "100ms")]).await;
    let user = app.user().await;
    let mut n = 0;
    for route in STREAMING {
        for (fault, chunks) in [("hang-after-headers", 0), ("stall:5", 3)] {
            let mut response = open(&user, route, streaming(route, &format!("[[sim fault={fault}]]"))).await;
            let mut read = 0;
            while read < chunks {
                read += response.chunk().await.unwrap().unwrap().windows(2).filter(|w| w == b"\n\n").count();
            }
            drop(response);
            n += 1;
            let left = Instant::now();
            let stats = app.engine.wait_for(SOON, |stats| stats.cancelled == n).await;
            assert_eq!(stats.cancellations.back().unwrap().phase, Phase::Streaming, "{route} {fault}");
            println!("{route} {fault}: cancelled after {:?}", left.elapsed());
            nothing_is_left(&app).await;
        }
    }
    assert!(usage_rows(&app).await.iter().all(|row| row.0 == "client_abort"));
}

/// Five hundred clients that ask and leave, `together` at a time, which is as many as there are permits, spread over `spread`
/// ms. Then nothing of them is left.
async fn five_hundred_leave(app: &TestApp, together: u64, spread: u64) {
    let user = app.user().await;
    let body = chat("[[sim first-token-ms=200 token-interval-ms=20 tokens=100]]").to_string();
    let host = app.url.strip_prefix("http://").unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        user.token(),
        body.len()
    );
    for round in 0..500 / together {
        let leavers = (0..together).map(|i| {
            let head = head.clone();
            async move {
                let mut client = TcpStream::connect(host).await.unwrap();
                client.write_all(head.as_bytes()).await.unwrap();
                tokio::time::sleep(MS((round * together + i) * 7 % spread)).await;
                if i % 2 == 0 {
                    client.set_zero_linger().unwrap();
                }
            }
        });
        join_all(leavers).await;
    }
    nothing_is_left(app).await;
    let stats = app.engine.stats();
    assert_eq!(stats.completed, 0, "{stats:?}");
    // Permits come back, those of clients that left during admission included.
    crate::support::eventually("all permits are back", S(5), async || {
        let streams = (0..together)
            .map(|_| user.post("/v1/chat/completions", chat("[[sim tokens=3 token-interval-ms=50]]")));
        if join_all(streams).await.iter().all(|answer| answer.status == 200) {
            return true;
        }
        // Those that passed give theirs back a moment after their end.
        tokio::time::sleep(S(1)).await;
        false
    })
    .await;
    // Idle connections to the engine are closed soon; none is held by a request that is gone.
    app.engine.wait_for(S(10), |stats| stats.connections_open == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_that_leave_at_once_leave_nothing_behind() {
    let app =
        TestApp::with(&[("AI_CONCURRENT_STREAMS", "10"), ("RATE_LIMIT_AI_REQUESTS", "100000/1m")]).await;
    // Somewhere between admission, connection, head and first token.
    five_hundred_leave(&app, 10, 25).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_clients_that_leave_in_the_middle_leave_nothing_behind() {
    let app = TestApp::with(&[
        ("AI_CONCURRENT_STREAMS", "50"),
        ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
        ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
        ("RATE_LIMIT_GLOBAL", "100000/1m"),
    ])
    .await;
    five_hundred_leave(&app, 50, 600).await;
    let cancelled = app.engine.stats().cancellations;
    let in_the_middle =
        cancelled.iter().filter(|one| one.phase == Phase::Streaming && one.chunks > 0).count();
    // How many depends on how busy the machine is.
    assert!(in_the_middle > 25, "{in_the_middle} of {}", cancelled.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_an_answer_in_one_piece_after_the_engines_head_cancels_it() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for (n, route) in STREAMING.into_iter().enumerate() {
        let body = whole(route, "[[sim fault=hang-after-headers]]");
        let request = user.request(Method::POST, route).json(&body).send();
        tokio::select! {
            answer = request => panic!("{route}: {answer:?}"),
            // The head follows the request at once, so it is there a moment later.
            () = async {
                app.engine.wait_for(S(5), |stats| stats.requests_open == 1).await;
                tokio::time::sleep(MS(200)).await;
            } => {}
        }
        let stats = app.engine.wait_for(SOON, |stats| stats.cancelled == n as u64 + 1).await;
        assert_eq!(stats.cancellations.back().unwrap().phase, Phase::Streaming, "{route}");
        nothing_is_left(&app).await;
    }
    let rows = usage_rows(&app).await;
    assert!(rows.len() == 3 && rows.iter().all(|row| row.0 == "client_abort"), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_is_no_request() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let host = app.url.strip_prefix("http://").unwrap();
    let mut client = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 1000\r\n\r\n{{\"model\":",
        user.token()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(MS(50)).await;
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!((app.engine.stats().requests_total, app.state.ai.open()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_stream_leaves_its_engine_connection_for_the_next_one() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for _ in 0..10 {
        for route in STREAMING {
            read(&user, route, streaming(route, "Hello!")).await;
        }
    }
    let stats = app.engine.stats();
    assert!(stats.connections_total <= 3, "{stats:?}");
}
