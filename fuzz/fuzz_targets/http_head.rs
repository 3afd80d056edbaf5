//! Any bytes on a connection: what reaches a handler is unambiguous, nothing runs after a refusal, and what hyper answers by
//! itself is replaced by an answer of ours.

#![no_main]

#[path = "../../crates/server/src/refusal.rs"]
mod refusal;

use std::{cell::Cell, convert::Infallible, rc::Rc};

use axum::body::Body;
use fuzz::Pieces;
use hyper::{Request, Response, Version, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};

const MAX_HEAD_BYTES: usize = 32 * 1024;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
}

/// What the accept loop does with a request, without its timers.
fn answer(request: &Request<Incoming>, runs: &Cell<usize>, refused: &Cell<bool>) -> Response<Body> {
    assert!(!refused.get(), "a request runs after one that was refused");
    if let Some(detail) = refusal::ambiguous(request) {
        refused.set(true);
        return refusal::response(detail);
    }
    runs.set(runs.get() + 1);
    let headers = request.headers();
    let count = |name: &header::HeaderName| headers.get_all(name).iter().count();
    let hosts = count(&header::HOST);
    assert!(hosts == 1 || hosts == 0 && request.version() == Version::HTTP_10, "{hosts} hosts");
    assert!(count(&header::TRANSFER_ENCODING) <= 1, "two codings");
    let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
    assert!(lengths.windows(2).all(|two| two[0] == two[1]), "two lengths: {lengths:?}");
    Response::new(Body::from("ran"))
}

async fn serve(input: &Pieces) {
    let (client, server) = tokio::io::duplex(1 << 20);
    let (runs, refused) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let (counted, stopped) = (runs.clone(), refused.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &counted, &stopped);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(server), service);
    let (mut from, mut to) = split(client);
    let talk = async {
        for piece in input.iter() {
            if to.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = to.shutdown().await;
    };
    let mut answered = Vec::new();
    let listen = from.read_to_end(&mut answered);
    let _ = tokio::join!(connection, talk, listen);

    // Each request has a line that names the version.
    let lines = input.whole().windows(7).filter(|word| *word == b"HTTP/1.").count();
    assert!(runs.get() <= lines, "{} requests of {lines} lines", runs.get());
    if runs.get() == 0 && !refused.get() && !answered.is_empty() {
        let ours = refusal::instead_of(&answered);
        let ours = ours.unwrap_or_else(|| panic!("not replaced: {}", String::from_utf8_lossy(&answered)));
        let text = String::from_utf8_lossy(&ours);
        assert!(text.contains("application/problem+json") && text.contains("\r\nconnection: close\r\n"), "{text}");
    }
}

fuzz_target!(|input: Pieces| RUNTIME.with(|runtime| runtime.block_on(serve(&input))));
