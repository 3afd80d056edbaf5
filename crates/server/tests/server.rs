//! The accept loop, seen through raw sockets.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use config::{HttpConfig, ShutdownConfig};
use runtime::{Lifecycle, Phase};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Server {
    address: SocketAddr,
    lifecycle: Lifecycle,
    /// Streams of `/events/endless`.
    endless: Arc<AtomicUsize>,
}

fn start() -> Server {
    start_with(MS(300))
}

fn start_with(header_timeout: Duration) -> Server {
    let config = HttpConfig {
        host: "::".parse().unwrap(),
        port: 0,
        admin_port: None,
        header_timeout,
        body_idle_timeout: MS(300),
        keep_alive: MS(900),
        write_stall_timeout: MS(500),
        max_connections: 50,
    };
    let endless = Arc::<AtomicUsize>::default();
    let counted = endless.clone();
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/slow", get(|| async { tokio::time::sleep(MS(1_200)).await }))
        .route(
            "/endless",
            get(|| async {
                let block = Bytes::from(vec![b'x'; 64 * 1024]);
                Body::from_stream(tokio_stream::iter(std::iter::repeat_with(move || {
                    Ok::<_, std::io::Error>(block.clone())
                })))
            }),
        )
        // Three events, 100 ms apart; with a body, after all of it.
        .route("/events", get(async || events(3, 100, None)).post(async |_: Bytes| events(3, 100, None)))
        .route("/events/at-once", get(async || events(3, 0, None)))
        .route("/events/endless", get(async move || events(usize::MAX, 50, Some(Counted::new(&counted)))))
        .route(
            "/events/broken",
            get(|| async {
                let parts = [Ok("data: 1\n\n"), Err(std::io::Error::other("it broke"))];
                event_stream(Body::from_stream(tokio_stream::iter(parts)))
            }),
        )
        .route(
            "/echo",
            post(|body: Result<Bytes, axum::extract::rejection::BytesRejection>| async move {
                body.map_err(|_| StatusCode::REQUEST_TIMEOUT)
            }),
        );
    let listener = server::bind(config.host, 0).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
    let lifecycle = Lifecycle::new(ShutdownConfig { delay: MS(0), budget: MS(5_000) });
    lifecycle.spawn("http", server::serve(listener, router, config, lifecycle.clone()));
    Server { address, lifecycle, endless }
}

/// One of the event streams that are being written.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn events(count: usize, pause: u64, counted: Option<Counted>) -> impl IntoResponse {
    let events = futures_util::stream::unfold((0, counted), move |(n, counted)| async move {
        tokio::time::sleep(MS(pause)).await;
        (n < count).then(|| (Ok::<_, std::io::Error>(format!("data: {n}\n\n")), (n + 1, counted)))
    });
    event_stream(Body::from_stream(events))
}

fn event_stream(body: Body) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/event-stream")], body)
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends this on a new connection, and reads to its end: how long that took.
    async fn ask(&self, request: &str) -> (String, Duration) {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_to_end(&mut stream).await
    }
}

async fn read_to_end(stream: &mut TcpStream) -> (String, Duration) {
    let started = Instant::now();
    let mut text = Vec::new();
    // A reset is an end too.
    let _ = tokio::time::timeout(MS(5_000), stream.read_to_end(&mut text)).await.expect("the server closes");
    (String::from_utf8_lossy(&text).into_owned(), started.elapsed())
}

async fn read_answer(stream: &mut TcpStream) -> String {
    let mut buffer = vec![0; 4096];
    let n = tokio::time::timeout(MS(3_000), stream.read(&mut buffer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[tokio::test]
async fn it_answers_over_ipv4_on_a_dual_stack_socket() {
    let server = start();
    let (text, _) = server.ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("hello"), "{text}");
}

#[tokio::test]
async fn a_silent_client_and_a_half_head_are_closed_after_the_header_timeout() {
    let server = start();
    for sent in ["", "G", "GET / HTTP/1.1\r\nHost:"] {
        let (text, took) = server.ask(sent).await;
        assert!(text.is_empty() && took >= MS(250) && took < MS(800), "{sent:?}: {took:?} {text}");
    }
}

#[tokio::test]
async fn a_head_that_trickles_in_does_not_prolong_its_time() {
    let server = start();
    let mut stream = server.connect().await;
    let started = Instant::now();
    let mut closed = false;
    for byte in b"GET / HTTP/1.1\r\nHost: example.com\r\nX-Padding: aaaaaaaaaaaaa".iter().cycle().take(60) {
        tokio::time::sleep(MS(50)).await;
        if stream.write_all(&[*byte]).await.is_err() {
            closed = true;
            break;
        }
    }
    assert!(closed && started.elapsed() < MS(1_500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_kept_alive_connection_may_idle_longer_than_a_head_may_take() {
    let server = start();
    let mut stream = server.connect().await;
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(read_answer(&mut stream).await.contains("200 OK"));
        tokio::time::sleep(MS(500)).await;
    }
    let (_, took) = read_to_end(&mut stream).await;
    assert!(took >= MS(250) && took < MS(1_200), "closed when keep-alive was over: {took:?}");
}

#[tokio::test]
async fn a_slow_handler_is_not_taken_for_an_idle_connection() {
    let server = start();
    let mut stream = server.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut stream).await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let server = start();
    let (text, took) = server.ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc").await;
    assert!(text.starts_with("HTTP/1.1 408") && took < MS(1_500), "{took:?} {text}");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let server = start();
    let mut stream = server.connect().await;
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::timeout(MS(10_000), async {
        while server.lifecycle.tasks() <= 2 {
            tokio::time::sleep(MS(5)).await;
        }
        while server.lifecycle.tasks() > 2 {
            tokio::time::sleep(MS(50)).await;
        }
    })
    .await
    .expect("the connection's task ends although nobody reads");
}

#[tokio::test]
async fn a_body_that_trickles_in_is_given_up_and_a_slow_but_steady_one_is_not() {
    let server = start();
    for (bytes, pause, status) in [(1, 50, "408"), (512, 50, "200")] {
        let mut stream = server.connect().await;
        let head = format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            bytes * 30
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let sending = async {
            for _ in 0..30 {
                tokio::time::sleep(MS(pause)).await;
                if to.write_all(&vec![b'x'; bytes]).await.is_err() {
                    return;
                }
            }
        };
        let started = Instant::now();
        let mut text = vec![0; 64];
        let answer = async {
            from.read_exact(&mut text).await.unwrap();
            started.elapsed()
        };
        let ((), took) = tokio::join!(sending, answer);
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
        assert!(status == "200" || took < MS(1_200), "{took:?}");
    }
}

/// Case H3.
#[tokio::test]
async fn heads_that_are_too_large_and_nonsense_are_refused_with_a_problem_document() {
    let server = start();
    let head = |more: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let lines = |n: usize| (0..n).map(|i| format!("X-{i}: y\r\n")).collect::<Vec<_>>().concat();
    let long_path = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(n));
    for (name, sent, statuses) in [
        ("one line of 33 KiB", head(&format!("X: {}\r\n", "a".repeat(33 * 1024))), &[431][..]),
        ("lines of 33 KiB together", head(&format!("X: {}\r\n", "a".repeat(1_024)).repeat(33)), &[431]),
        ("300 KiB", head(&format!("X: {}\r\n", "a".repeat(300 * 1024))), &[431]),
        ("101 lines", head(&lines(100)), &[431]),
        ("a path of 33 KiB", long_path(33 * 1024), &[414, 431]),
        ("a path of 64 KiB", long_path(64 * 1024), &[414, 431]),
        ("nonsense", "NONSENSE\r\n\r\n".to_owned(), &[400]),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".to_owned(), &[400]),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned(), &[400]),
    ] {
        let mut stream = server.connect().await;
        let _ = stream.write_all(sent.as_bytes()).await;
        let (text, took) = read_to_end(&mut stream).await;
        let status: u16 = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        assert!(statuses.contains(&status), "{name}: {text}");
        assert!(took < MS(3_000), "{name}: {took:?}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        for line in [
            "content-type: application/problem+json",
            "connection: close",
            "x-request-id: ",
            "x-content-type-options: nosniff",
        ] {
            assert!(head.contains(line), "{name}: no {line} in {head}");
        }
        assert!(head.contains(&format!("content-length: {}\r", body.len())), "{name}: {text}");
        assert!(body.contains(&format!("\"status\":{status},")), "{name}: {body}");
    }
    // Just below the limits nothing is refused.
    let mut stream = server.connect().await;
    let fine = head(&format!("{}X: {}\r\nConnection: close\r\n", lines(90), "a".repeat(30 * 1024)));
    stream.write_all(fine.as_bytes()).await.unwrap();
    assert!(read_to_end(&mut stream).await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_answer_that_comes_before_the_whole_body_is_not_lost_in_a_reset() {
    let server = start();
    for _ in 0..20 {
        let mut stream = server.connect().await;
        let length = 4 * 1024 * 1024;
        let head = format!("POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // As many clients do it: everything is sent before anything is read.
        stream.write_all(&vec![b'x'; length]).await.unwrap();
        let (text, _) = read_to_end(&mut stream).await;
        assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    }
}

#[tokio::test]
async fn when_there_is_no_room_the_oldest_silent_connections_make_some_and_busy_ones_stay() {
    // Nobody is closed for silence here.
    let server = start_with(MS(60_000));
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut kept, mut silent) = (server.connect().await, Vec::new());
    kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(read_answer(&mut kept).await.contains("200 OK"));
    // Many more than the fifty that may be open.
    for _ in 0..200 {
        let mut stream = server.connect().await;
        stream.write_all(b"G").await.unwrap();
        silent.push(stream);
    }
    for _ in 0..20 {
        let mut good = server.connect().await;
        good.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(read_to_end(&mut good).await.0.starts_with("HTTP/1.1 200"));
    }
    assert!(read_to_end(&mut busy).await.0.starts_with("HTTP/1.1 200"), "what was being asked was answered");
    assert_eq!(read_to_end(&mut kept).await.0, "", "an idle one had to go");
}

#[tokio::test]
async fn closing_ends_idle_connections_at_once_and_lets_a_request_finish() {
    let server = start();
    let mut idle = server.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    read_answer(&mut idle).await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(MS(100)).await;

    let life = server.lifecycle.clone();
    life.begin_shutdown();
    let stopping = tokio::time::timeout(MS(4_000), life.run_until_stopped());
    let (cut, (_, idle_took), (busy_text, _)) =
        tokio::join!(stopping, read_to_end(&mut idle), read_to_end(&mut busy));
    assert_eq!(cut.expect("well before the budget"), 0);
    assert!(idle_took < MS(300), "{idle_took:?}");
    assert!(busy_text.starts_with("HTTP/1.1 200"), "{busy_text}");
    assert!(TcpStream::connect(server.address).await.is_err(), "nothing listens any more");
    assert!(life.phase() >= Phase::Closing);
}

#[tokio::test]
async fn a_taken_port_is_named_with_a_way_out() {
    let listener = server::bind("127.0.0.1".parse().unwrap(), 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = server::bind("127.0.0.1".parse().unwrap(), port).unwrap_err().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("PORT"), "{error}");
}

const CHUNKS: &str = "9\r\ndata: 0\n\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n";

#[tokio::test]
async fn an_event_stream_comes_in_chunks_as_they_are_made_and_then_the_connection_goes_on() {
    let server = start();
    let mut stream = server.connect().await;
    for (request, body) in [
        ("GET /events HTTP/1.1\r\nHost: x\r\n\r\n", ""),
        ("POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n", "abc"),
        ("GET /events/at-once HTTP/1.1\r\nHost: x\r\n\r\n", ""),
    ] {
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let (mut text, mut pieces) = (String::new(), 0);
        while !text.ends_with("0\r\n\r\n") {
            text += &read_answer(&mut stream).await;
            pieces += 1;
        }
        let (head, chunks) = text.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<_> = head.lines().collect();
        let date = lines.pop().unwrap().strip_prefix("date: ").unwrap();
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
        assert_eq!(
            lines,
            ["HTTP/1.1 200 OK", "transfer-encoding: chunked", "content-type: text/event-stream"]
        );
        assert_eq!(chunks, CHUNKS);
        assert!(pieces >= 3 || request.contains("at-once"), "{pieces} pieces");
        // Not an event stream: hyper's again.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(read_answer(&mut stream).await.ends_with("hello"));
    }
    let (_, took) = read_to_end(&mut stream).await;
    assert!(took >= MS(600) && took < MS(2_000), "closed when keep-alive was over: {took:?}");
}

#[tokio::test]
async fn an_event_stream_for_a_request_in_chunks_is_the_last_answer_on_its_connection() {
    let server = start();
    let request =
        "POST /events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let (text, _) = server.ask(&format!("{request}GET / HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    let (head, chunks) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nconnection: close"), "{head}");
    assert_eq!(chunks, CHUNKS);
}

#[tokio::test]
async fn requests_sent_ahead_of_a_stream_are_answered_in_order_after_it() {
    let server = start();
    for first in ["/", "/events/at-once", "/events"] {
        let mut stream = server.connect().await;
        let many = format!(
            "GET {first} HTTP/1.1\r\nHost: x\r\n\r\nGET /events HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n\
             GET /events/at-once HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"
        );
        // The last one comes after the one that closes, and is not answered. In two pieces, the second in the middle of a stream.
        let (front, back) = many.split_at(many.len() - 150);
        stream.write_all(front.as_bytes()).await.unwrap();
        tokio::time::sleep(MS(150)).await;
        stream.write_all(back.as_bytes()).await.unwrap();
        let (text, took) = read_to_end(&mut stream).await;
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 4, "{text}");
        let hellos = if first == "/" { 2 } else { 1 };
        assert_eq!(
            (text.matches("hello").count(), text.matches(CHUNKS).count()),
            (hellos, 4 - hellos),
            "{text}"
        );
        assert!(text.ends_with(CHUNKS) && text.contains("\r\nconnection: close\r\n"), "{text}");
        assert!(took < MS(2_000), "{took:?}");
    }
}

#[tokio::test]
async fn many_requests_sent_ahead_are_all_answered_whatever_was_read_with_them() {
    let server = start();
    let large = format!("GET /events HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(9 << 10));
    let body = format!(
        "POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}",
        100 << 10,
        "b".repeat(100 << 10)
    );
    for first in [large, body] {
        let mut stream = server.connect().await;
        let many = "GET /events/at-once HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
        let last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let (mut from, mut to) = stream.split();
        let all = [first.as_bytes(), many.as_bytes(), last.as_bytes()].concat();
        let mut text = String::new();
        let (sent, read) = tokio::join!(to.write_all(&all), from.read_to_string(&mut text));
        sent.unwrap();
        read.unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 1_002);
        assert_eq!(text.matches(CHUNKS).count(), 1_001);
        assert!(text.ends_with("hello"));
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_client_and_a_broken_one_without_a_last_chunk() {
    let server = start();
    for leave in ["close", "half", "reset"] {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /events/endless HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(read_answer(&mut stream).await.contains("200 OK"));
        assert_eq!(server.endless.load(Ordering::Relaxed), 1);
        match leave {
            "half" => stream.shutdown().await.unwrap(),
            "reset" => stream.set_zero_linger().unwrap(),
            _ => {}
        }
        let kept = (leave == "half").then_some(stream);
        tokio::time::timeout(MS(250), async {
            while server.endless.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(MS(5)).await;
            }
        })
        .await
        .expect(leave);
        drop(kept);
    }
    let (text, _) = server.ask("GET /events/broken HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(text.ends_with("9\r\ndata: 1\n\n\r\n"), "{text}");
}

#[tokio::test]
async fn who_cannot_read_chunks_gets_a_stream_until_the_connections_end() {
    let server = start();
    let (text, _) = server.ask("GET /events HTTP/1.0\r\n\r\n").await;
    assert!(text.ends_with("\r\n\r\ndata: 0\n\ndata: 1\n\ndata: 2\n\n"), "{text}");
    let (text, _) = server.ask("HEAD /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn a_stream_may_end_while_the_listener_is_closed_and_is_cut_at_the_hard_stop() {
    let server = start();
    let (mut short, mut endless) = (server.connect().await, server.connect().await);
    for (stream, path) in [(&mut short, "/events"), (&mut endless, "/events/endless")] {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        read_answer(stream).await;
    }
    let life = server.lifecycle.clone();
    life.begin_shutdown();
    let stopping = life.run_until_stopped();
    let endless = async {
        let started = Instant::now();
        let _ = endless.read_to_end(&mut Vec::new()).await;
        started.elapsed()
    };
    let (cut, (text, took), endless) = tokio::join!(stopping, read_to_end(&mut short), endless);
    assert!(text.ends_with("0\r\n\r\n") && took < MS(1_500), "{took:?} {text}");
    assert!(endless >= MS(4_500) && endless < MS(6_000), "{endless:?}");
    assert_eq!(cut, 0, "what is told to stop stops");
}
