//! Bodies that are too long, or not what they say.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Deployment, Persona, TestApp, exchange, free_port, read, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const PATIENCE: Duration = Duration::from_secs(5);
const GIB: u64 = 1 << 30;

fn address(app: &TestApp) -> SocketAddr {
    app.url.strip_prefix("http://").unwrap().parse().unwrap()
}

fn post(user: &Persona, path: &str, headers: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {}\r\n{headers}\r\n",
        user.token()
    )
}

/// A route of each size: its path, and its limit.
const ROUTES: [(&str, usize); 3] =
    [("/v1/auth/login", 4 * 1024), ("/v1/jobs", 256 * 1024), ("/v1/chat/completions", 8 * 1024 * 1024)];

/// The error's code, whatever the dialect.
fn code(text: &str) -> String {
    let body = text.rsplit("\r\n\r\n").next().unwrap_or_default();
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {text}"));
    let code = if body["error"].is_object() { &body["error"]["code"] } else { &body["code"] };
    code.as_str().unwrap().to_owned()
}

/// Case H4: known lengths.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_announces_too_much_is_refused_before_it_is_sent() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for (path, limit) in ROUTES {
        for length in [limit as u64 + 1, GIB, u64::MAX / 2] {
            for expect in ["", "Expect: 100-continue\r\n"] {
                let head = post(&user, path, &format!("{expect}Content-Length: {length}\r\n"));
                let started = Instant::now();
                let reply = exchange(address(&app), head.as_bytes(), PATIENCE).await;
                assert_eq!(reply.statuses(), [413], "{path} {length}: {reply:?}");
                assert_eq!(code(&reply.text), "body_too_large");
                assert!(reply.closed && started.elapsed() < S(4), "{path} {length}: {reply:?}");
            }
        }
        // One that fits is asked for, and then read.
        let length = limit.min(100_000);
        let head = post(&user, path, &format!("Expect: 100-continue\r\nContent-Length: {length}\r\n"));
        let mut stream = TcpStream::connect(address(&app)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).await.unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(&vec![b' '; length]).await.unwrap();
        let reply = read(stream, Duration::from_millis(700)).await;
        assert_eq!(reply.statuses(), [400], "spaces are no JSON: {reply:?}");
    }
}

/// Case H4: unknown lengths.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_without_end_is_cut_off_at_the_limit() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for (path, limit) in ROUTES {
        let mut stream = TcpStream::connect(address(&app)).await.unwrap();
        let head = post(&user, path, "Transfer-Encoding: chunked\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
        let (mut from, mut to) = stream.split();
        let mut sent = 0_usize;
        let mut answer = vec![0; 4096];
        let sending = async {
            while to.write_all(&chunk).await.is_ok() {
                sent += 0x10000;
            }
            std::future::pending::<()>().await;
        };
        let n = tokio::select! {
            () = sending => unreachable!(),
            read = from.read(&mut answer) => read.unwrap(),
        };
        let text = String::from_utf8_lossy(&answer[..n]).into_owned();
        assert!(text.starts_with("HTTP/1.1 413"), "{path}: {text}");
        assert_eq!(code(&text), "body_too_large");
        assert!(sent + 0x10000 >= limit, "{path}: refused after {sent}");
    }
}

/// Case H4: lengths that are not true.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_another_length_than_it_says_is_refused_and_its_rest_is_no_request() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let job = json!({ "kind": "echo", "args": { "message": "x" } }).to_string();
    // Longer than it says: the rest is nonsense where a request should begin.
    let short = post(&user, "/v1/jobs", "Content-Length: 5\r\n") + &job;
    let reply = exchange(address(&app), short.as_bytes(), PATIENCE).await;
    assert_eq!(reply.statuses(), [400, 400], "{reply:?}");
    assert!(reply.closed);
    // Shorter than it says, and then the end.
    for headers in ["Content-Length: 5000\r\n", "Transfer-Encoding: chunked\r\n"] {
        for path in ["/v1/jobs", "/v1/chat/completions"] {
            let head = post(&user, path, headers);
            let body = if headers.starts_with('T') { "fff\r\n{" } else { "{" };
            let mut stream = TcpStream::connect(address(&app)).await.unwrap();
            stream.write_all([&head, body].concat().as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let reply = read(stream, PATIENCE).await;
            // Who has hung up is not always told.
            assert!(reply.closed && matches!(reply.statuses()[..], [] | [400]), "{path}: {reply:?}");
        }
    }
    // Chunks that are none.
    for path in ["/v1/jobs", "/v1/chat/completions"] {
        let broken = post(&user, path, "Transfer-Encoding: chunked\r\n") + "zz\r\n{}\r\n0\r\n\r\n";
        let reply = exchange(address(&app), broken.as_bytes(), PATIENCE).await;
        assert!(reply.statuses() == [400] && reply.closed, "{reply:?}");
        assert_eq!(code(&reply.text), "body_incomplete");
    }
    let jobs: i64 = sqlx::query_scalar("select count(*) from job where kind = 'echo'")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(jobs, 0, "nothing was done");
}

/// Case H4: bombs. Nobody looks inside.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_refused_on_every_route_that_reads_one() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xed, 0xc1, 1, 1, 0, 0, 0, 0x80, 0x90, 0xfe];
    for (path, _) in ROUTES {
        for encoding in ["gzip", "GZIP", "br", "deflate", "zstd", "identity, gzip", "gzip, gzip", "x"] {
            let head = post(
                &user,
                path,
                &format!("Content-Encoding: {encoding}\r\nContent-Length: {}\r\n", bomb.len()),
            );
            let reply =
                exchange(address(&app), &[head.as_bytes(), &bomb].concat(), Duration::from_millis(300)).await;
            assert_eq!(reply.statuses(), [415], "{path} {encoding}: {reply:?}");
            assert_eq!(code(&reply.text), "unsupported_encoding");
        }
        let twice = post(
            &user,
            path,
            "Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n",
        );
        let reply = exchange(address(&app), (twice + "{}").as_bytes(), Duration::from_millis(300)).await;
        assert_eq!(reply.statuses(), [415], "{path}: {reply:?}");
    }
}

/// Case H4: memory.
#[tokio::test(flavor = "multi_thread")]
async fn sixteen_clients_that_send_without_end_cost_no_memory() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let api = deployment.start("api", port, &[]);
    ready(port).await;
    let before = api.memory_kib("VmRSS");
    let head = "POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 0x0010_0000], b"\r\n"].concat();
    let flood = (0..16).map(|_| async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut sent = 0;
        if stream.write_all(head.as_bytes()).await.is_ok() {
            // Until the server has had enough: it takes more for two seconds, and throws it away.
            while sent < 2 * GIB && stream.write_all(&chunk).await.is_ok() {
                sent += chunk.len() as u64;
            }
        }
        sent
    });
    let sent: u64 = futures_util::future::join_all(flood).await.into_iter().sum();
    assert!(sent > 16 * 1024 * 1024, "much more than the limit was sent: {sent}");
    if let (Some(before), Some(peak)) = (before, api.memory_kib("VmHWM")) {
        let more = peak.saturating_sub(before) / 1024;
        println!("{} MiB sent, {more} MiB of memory", sent >> 20);
        assert!(more < 32, "{more} MiB");
    }
}
