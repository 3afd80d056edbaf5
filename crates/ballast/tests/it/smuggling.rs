//! Request smuggling: bytes that two parsers may cut into requests in different ways. Whatever comes, a handler runs once for
//! one request, and what stood behind it in disguise is never one of its own.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use config::{HttpConfig, MapVars, ShutdownConfig};
use runtime::Lifecycle;

use crate::support::{exchange, free_port};

pub(crate) const PATIENCE: Duration = Duration::from_millis(700);
/// What an attacker wants to be taken for a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

/// What a handler did, in its order: the side effects.
pub(crate) type Effects = Arc<Mutex<Vec<String>>>;

pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) effects: Effects,
    lifecycle: Lifecycle,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.lifecycle.stop_now();
    }
}

/// The accept loop of every role, with handlers that leave a trace.
pub(crate) fn target() -> Target {
    async fn effect(State(effects): State<Effects>, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        effects.lock().unwrap().push(path.clone());
        if path == "/unread" {
            return StatusCode::OK.into_response();
        }
        match axum::body::to_bytes(request.into_body(), 1_000_000).await {
            Ok(_) if path == "/stream" => {
                let event = futures_util::stream::iter([Ok::<_, std::io::Error>("data: x\n\n")]);
                ([(CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(event))
                    .into_response()
            }
            Ok(_) => StatusCode::OK.into_response(),
            Err(_) => StatusCode::BAD_REQUEST.into_response(),
        }
    }
    let vars = MapVars::from([
        ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("HOST", "127.0.0.1"),
    ]);
    let config: HttpConfig = config::ApiConfig::from_vars(&vars).unwrap().runtime.http;
    let effects = Effects::default();
    let router = Router::new().fallback(effect).with_state(effects.clone());
    let listener = server::bind(config.host, free_port()).unwrap();
    let address = listener.local_addr().unwrap();
    let times = ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(1) };
    let lifecycle = Lifecycle::new(times);
    lifecycle.spawn("http server", server::serve(listener, router, config, lifecycle.clone()));
    Target { address, effects, lifecycle }
}

/// How often a handler of ours may run when nothing stands in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    /// Refused before any handler.
    Never,
    /// One request, and the connection ends with its answer.
    OnceAndClosed,
    /// One request.
    Once,
}

/// A request with these header lines, this body, and what should not be a request behind it.
fn post(headers: &str, body: &str) -> String {
    format!("POST /first HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{body}{SMUGGLED}")
}

fn framing() -> Vec<(&'static str, Runs, String)> {
    use Runs::{Never, OnceAndClosed};
    let chunked = "Transfer-Encoding: chunked";
    let end = "0\r\n\r\n";
    let length = |n: usize| format!("Content-Length: {n}");
    let both = |first: &str, second: &str| format!("{first}\r\n{second}");
    let all = end.len() + SMUGGLED.len();
    let mut vectors = vec![
        // RFC 9112, section 6.3: chunked wins, and the connection must be closed.
        ("CL and TE, CL short", OnceAndClosed, post(&both(&length(4), chunked), end)),
        ("CL and TE, CL over all", OnceAndClosed, post(&both(&length(all), chunked), end)),
        ("TE and CL, CL short", OnceAndClosed, post(&both(chunked, &length(4)), end)),
        ("TE and CL 0", OnceAndClosed, post(&both(chunked, &length(0)), end)),
        ("two CL that differ", Never, post(&both(&length(0), &length(SMUGGLED.len())), "")),
        ("two CL that differ, other order", Never, post(&both(&length(SMUGGLED.len()), &length(0)), "")),
        ("a list of CL that differ", Never, post("Content-Length: 0, 33", "")),
        ("two TE, the last one not chunked", Never, post(&both(chunked, "Transfer-Encoding: identity"), end)),
        ("two TE, both chunked", Never, post(&both(chunked, chunked), end)),
        ("TE in HTTP/1.0", Never, post(chunked, end).replacen("HTTP/1.1", "HTTP/1.0", 1)),
        (
            "TE and CL in HTTP/1.0",
            Never,
            post(&both(chunked, &length(4)), end).replacen("HTTP/1.1", "HTTP/1.0", 1),
        ),
        ("no Host", Never, format!("GET /first HTTP/1.1\r\n\r\n{SMUGGLED}")),
        ("two Hosts", Never, format!("GET /first HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n{SMUGGLED}")),
        ("the preface of HTTP/2", Never, format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{SMUGGLED}")),
    ];
    for value in [
        "+0",
        "-1",
        "0x0",
        "0 0",
        "0;0",
        "",
        "zero",
        "1e1",
        "\u{b}0",
        "18446744073709551616",
        "99999999999999999999999999",
    ] {
        vectors.push(("a CL that is no number", Never, post(&format!("Content-Length: {value}"), "")));
    }
    for value in [
        "xchunked",
        "chunke",
        "chunked, identity",
        "gzip, chunked",
        "chunked, chunked",
        "identity",
        "\"chunked\"",
        "chunked;q=1",
        "\u{b}chunked",
        "chunked,",
        ",chunked",
    ] {
        let te = format!("Transfer-Encoding: {value}");
        vectors.push(("a TE that is not chunked", Never, post(&te, end)));
        vectors.push(("a TE that is not chunked, with CL", Never, post(&both(&length(4), &te), end)));
    }
    for line in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding:\r\n chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        " Transfer-Encoding: chunked",
        "Content-Length : 0",
        "Content-Length\u{b}: 0",
        "X: y\0z",
        "X: y\rz",
        "X: y\r\r\nTransfer-Encoding: chunked",
        "X",
        ": y",
        "X\u{e4}: y",
    ] {
        vectors.push(("a malformed header line", Never, post(&both(&length(4), line), end)));
    }
    for line in [
        "GET  /first HTTP/1.1",
        "GET /first HTTP/1.1 x",
        "GET /first  HTTP/1.1",
        "GET\t/first\tHTTP/1.1",
        "GET /fi rst HTTP/1.1",
        "GET /first HTTP/1.2",
        "GET /first HTTP/11",
        "GET /first http/1.1",
        "GET /first",
        "G\0ET /first HTTP/1.1",
        "GET /fi\0rst HTTP/1.1",
        "/first HTTP/1.1",
    ] {
        vectors.push(("a malformed request line", Never, format!("{line}\r\nHost: x\r\n\r\n{SMUGGLED}")));
    }
    vectors
}

fn chunks() -> Vec<(&'static str, Runs, String)> {
    let te = "Transfer-Encoding: chunked";
    let broken = [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "10000000000000000\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF0\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX y\r\n\r\n",
    ];
    broken.iter().map(|body| ("a malformed chunk", Runs::OnceAndClosed, post(te, body))).collect()
}

fn fine() -> Vec<(&'static str, Runs, String)> {
    let length = SMUGGLED.len();
    let without = |head: &str| head.to_owned();
    vec![
        (
            "two CL that are the same",
            Runs::Once,
            without("POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        ),
        (
            "a body that looks like a request",
            Runs::Once,
            format!("POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"),
        ),
        (
            "such a body that nobody reads",
            Runs::Once,
            format!("POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"),
        ),
        (
            "such a body of a GET",
            Runs::Once,
            format!("GET /unread HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}"),
        ),
        (
            "a long body that nobody reads",
            Runs::Once,
            format!(
                "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}",
                3_000 * length,
                SMUGGLED.repeat(3_000)
            ),
        ),
        (
            "such a body in a chunk",
            Runs::Once,
            format!(
                "POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{length:x};a=\"b\"\r\n{SMUGGLED}\r\n0\r\n\r\n"
            ),
        ),
        (
            "such a body in a chunk that nobody reads",
            Runs::Once,
            format!(
                "POST /unread HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"
            ),
        ),
        (
            "chunked in capitals",
            Runs::Once,
            without(
                "POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ),
        ),
        (
            "trailers that name a length",
            Runs::Once,
            format!(
                "POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: {length}\r\n\r\n"
            ),
        ),
        // Hyper takes what follows for trailers, which nobody reads.
        (
            "a bare LF behind the last chunk",
            Runs::Once,
            format!("POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n{SMUGGLED}"),
        ),
        ("the absolute form", Runs::Once, without("GET http://other/first HTTP/1.1\r\nHost: x\r\n\r\n")),
        // RFC 9112, section 2.2, lets a server take a lone LF for a line's end. Then all of them are.
        ("bare LF", Runs::Once, without("POST /first HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello")),
        (
            "bare LF before a TE",
            Runs::OnceAndClosed,
            format!(
                "POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "an upgrade to h2c",
            Runs::Once,
            without(
                "GET /first HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            ),
        ),
    ]
}

/// All of them; and once more to a handler that answers with an event stream, whose bytes are written by other means.
pub(crate) fn vectors() -> Vec<(&'static str, Runs, String)> {
    let all = [framing(), chunks(), fine()].concat();
    let streams = all.iter().filter(|(_, _, bytes)| bytes.contains("/first"));
    let streams: Vec<_> =
        streams.map(|(name, runs, bytes)| (*name, *runs, bytes.replace("/first", "/stream"))).collect();
    [all, streams].concat()
}

/// Case H6, straight at the accept loop.
#[tokio::test(flavor = "multi_thread")]
async fn no_ambiguous_request_runs_a_handler_twice_and_most_run_none() {
    let target = target();
    for (name, runs, bytes) in vectors() {
        target.effects.lock().unwrap().clear();
        let reply = exchange(target.address, bytes.as_bytes(), PATIENCE).await;
        let effects = target.effects.lock().unwrap().clone();
        let told = format!("{name}: {bytes:.200?}\n{effects:?} {reply:?}");
        assert!(!effects.contains(&"/smuggled".to_owned()) && effects.len() <= 1, "{told}");
        match runs {
            Runs::Never => {
                assert!(effects.is_empty() && reply.closed, "{told}");
                // HTTP/2's preface gets no answer: it is no HTTP/1 that could read one.
                assert!(reply.text.is_empty() || reply.statuses() == [400], "{told}");
            }
            Runs::OnceAndClosed => assert!(effects.len() == 1 && reply.closed, "{told}"),
            Runs::Once => assert!(effects.len() == 1 && reply.statuses() == [200], "{told}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_one_by_one_in_their_order() {
    let target = target();
    let request =
        |path: &str, more: &str, body: &str| format!("POST {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n{body}");
    let bytes = [
        request("/first", "Content-Length: 5\r\n", "hello"),
        request("/second", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        request("/third", "Connection: close\r\n", ""),
        request("/never", "", ""),
    ]
    .concat();
    let reply = exchange(target.address, bytes.as_bytes(), PATIENCE).await;
    assert_eq!(*target.effects.lock().unwrap(), ["/first", "/second", "/third"], "{reply:?}");
    assert!(reply.statuses() == [200, 200, 200] && reply.closed, "{reply:?}");
}
