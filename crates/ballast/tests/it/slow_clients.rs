//! Clients that take their time, on the real binary with its real timers.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::support::{Deployment, eventually, free_port, metric, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;
/// Above every other timer, and short enough for a test: in production it is 75 s.
const KEEP_ALIVE: &str = "40s";

/// A client that sends something and then, once a second, one byte more, for ever.
struct Slow {
    name: &'static str,
    first: String,
    then: Option<u8>,
    /// Seconds after which it must be closed.
    closed_after: u64,
    /// What it is told before that.
    told: &'static str,
}

impl Slow {
    async fn play(self, address: SocketAddr) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let started = Instant::now();
        stream.write_all(self.first.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let mut text = Vec::new();
        let trickle = async {
            while let Some(byte) = self.then {
                tokio::time::sleep(S(1)).await;
                if to.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = trickle => {}
            read = from.read_to_end(&mut text) => drop(read),
            () = tokio::time::sleep(S(90)) => panic!("{}: still open after {:?}", self.name, started.elapsed()),
        }
        let (took, text) = (started.elapsed(), String::from_utf8_lossy(&text));
        assert!(text.starts_with(self.told), "{}: {text}", self.name);
        assert_eq!(self.told.is_empty(), text.is_empty(), "{}: {text}", self.name);
        // A busy machine may be late. None may be early.
        let due = S(self.closed_after);
        assert!(took + MS(300) > due && took < due + S(8), "{}: {took:?}", self.name);
    }
}

fn slow_clients(token: &str) -> Vec<Slow> {
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {token}\r\n"
        )
    };
    let login = "POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let late = "HTTP/1.1 408 Request Timeout";
    let client =
        |name, first: String, then, closed_after, told| Slow { name, first, then, closed_after, told };
    vec![
        client("connects and is silent", String::new(), None, 10, ""),
        client("one byte and silence", "G".into(), None, 10, ""),
        client("half a head", "GET /livez HTTP/1.1\r\nHost:".into(), None, 10, ""),
        client("a head, a byte a second", "GET /livez HTTP/1.1\r\nX: ".into(), Some(b'x'), 10, ""),
        client("half a body", format!("{login}Content-Length: 100\r\n\r\n{{"), None, 20, late),
        client(
            "a body, a byte a second",
            format!("{login}Content-Length: 100\r\n\r\n{{"),
            Some(b' '),
            20,
            late,
        ),
        client(
            "a chunk, a byte a second",
            format!("{login}Transfer-Encoding: chunked\r\n\r\n64\r\n{{"),
            Some(b' '),
            20,
            late,
        ),
        client(
            "a prompt, a byte a second",
            format!("{}Content-Length: 1000\r\n\r\n{{", head("/v1/chat/completions")),
            Some(b' '),
            20,
            late,
        ),
    ]
}

/// Reads the head of a stream that never ends, and then nothing more.
async fn slow_reader(address: SocketAddr, port: u16, token: &str) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let body = json!({
        "model": "sim-small", "stream": true,
        "messages": [{"role": "user", "content": "[[sim tokens=10000000 chunk-bytes=4096]]"}],
    })
    .to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut begin = [0; 15];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    let started = Instant::now();
    let cut = async || metric(port, "http_slow_readers_cut_total", "").await;
    eventually("the slow reader is cut", S(60), async || cut().await > 0.0).await;
    let took = started.elapsed();
    assert!(took + MS(300) > S(30) && took < S(45), "{took:?}");
    // What was under way is still there, then the connection ends without the end of the stream.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(S(10), stream.read_to_end(&mut rest)).await.expect("it was closed");
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
}

/// One request, and then nothing on a connection that is kept.
async fn idle(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut buffer = vec![0; 8 * 1024];
    for pause in [0, 12] {
        // Longer than a head may take.
        tokio::time::sleep(S(pause)).await;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
    }
    let started = Instant::now();
    let n = tokio::time::timeout(S(60), stream.read(&mut buffer)).await.unwrap().unwrap_or(0);
    let took = started.elapsed();
    assert_eq!(n, 0, "closed without a word");
    assert!(took + MS(300) > S(40) && took < S(48), "{took:?}");
}

/// Case H1. Every timer by itself, side by side, while somebody else is served as ever.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_closed_in_time_and_nobody_else_notices() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let vars = [("HTTP_KEEP_ALIVE", KEEP_ALIVE), ("RATE_LIMIT_GLOBAL", "1000000/1m")];
    let mut api = deployment.start("api", port, &vars);
    ready(port).await;
    let (address, url) = (SocketAddr::from(([127, 0, 0, 1], port)), format!("http://127.0.0.1:{port}"));
    let client = reqwest::Client::builder().timeout(S(10)).build().unwrap();
    let token = deployment.user_at(port).await.token().to_owned();

    let good = async {
        let mut served = 0;
        loop {
            let request = client.get(format!("{url}/v1/me")).bearer_auth(&token);
            assert_eq!(request.send().await.unwrap().status(), 200);
            served += 1;
            // Never reached when the others are done.
            if served == 100_000 {
                return;
            }
            tokio::time::sleep(MS(50)).await;
        }
    };
    let slow = async {
        tokio::join!(
            join_all(slow_clients(&token).into_iter().map(|client| client.play(address))),
            slow_reader(address, port, &token),
            idle(address),
        )
    };
    tokio::select! {
        () = good => panic!("the slow ones hang"),
        _ = slow => {}
    }
    eventually("nothing is left of them", S(5), async || {
        metric(port, "http_connections", "").await <= 5.0 && metric(port, "ai_requests_open", "").await == 0.0
    })
    .await;
    assert!(api.is_running());
}
