//! The accept loop, and what is answered outside the engine's API.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::{self, Control};
use crate::error::{ApiError, json_response};
use crate::plan::Plan;
use crate::script::SimBody;
use crate::stats::Recorder;
use crate::wire::{Link, Wire};
use crate::{SimConfig, exchange};

const BACKLOG: u32 = 4096;
/// What hyper gathers before it writes: bounds the memory of a stream whose reader does not read.
const WRITE_BUFFER: usize = 64 * 1024;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: SimConfig,
    pub(crate) control: Control,
    pub(crate) recorder: Arc<Recorder>,
}

impl Engine {
    pub(crate) fn new(config: SimConfig) -> Self {
        Self { config, control: Control::new(), recorder: Arc::default() }
    }
}

/// Serves the simulated engine until `shutdown` is ready, then drops all connections at once.
///
/// # Errors
/// Only when the listener itself is lost; failures of single connections are theirs alone.
pub async fn serve(
    listener: TcpListener,
    config: SimConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    accept(listener, Arc::new(Engine::new(config)), shutdown).await
}

pub(crate) async fn accept(
    mut listener: TcpListener,
    engine: Arc<Engine>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let mut shutdown = pin!(shutdown);
    let mut connections = JoinSet::new();
    let mut retire = CancellationToken::new();
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            Some(_) = connections.join_next() => {}
            () = engine.control.refusal() => {
                let address = listener.local_addr()?;
                drop(listener);
                // Bound but not listening: the port refuses, and nobody else can take it.
                let held = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                held.set_reuseaddr(true)?;
                held.bind(address)?;
                // An engine that is gone has no idle connections either.
                std::mem::take(&mut retire).cancel();
                tokio::select! {
                    () = &mut shutdown => return Ok(()),
                    () = engine.control.refusal_over() => {}
                }
                listener = held.listen(BACKLOG)?;
            }
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(connection(engine.clone(), socket, retire.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, or a client that was gone at once: neither ends the engine.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
        }
    }
}

async fn connection(engine: Arc<Engine>, socket: TcpStream, retire: CancellationToken) {
    let _open = engine.recorder.connection();
    // Without it a kept-alive stream's first event waits for the peer's delayed ACK. Fails only on a dead socket.
    let _ = socket.set_nodelay(true);
    let link = Arc::new(Link::new(socket));
    let wire = TokioIo::new(Wire::new(link.clone()));
    let service = service_fn(move |request| respond(engine.clone(), link.clone(), request));
    let http = http1::Builder::new().max_buf_size(WRITE_BUFFER).writev(false).serve_connection(wire, service);
    let mut http = pin!(http);
    let ended = tokio::select! {
        ended = http.as_mut() => ended,
        () = retire.cancelled() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}

async fn respond(
    engine: Arc<Engine>,
    link: Arc<Link>,
    request: Request<Incoming>,
) -> io::Result<Response<SimBody>> {
    let mut response = match request.uri().path() {
        path if path.starts_with("/v1/") => exchange::answer(&engine, &link, request).await?,
        "/health" => json_response(StatusCode::OK, json!({"status": "ok", "simulation": true}).to_string()),
        "/control" => {
            let method = request.method().clone();
            let body = exchange::read(request.into_body()).await?;
            let (scratch, stats) = (Plan::new(&engine.config), engine.recorder.snapshot());
            body.and_then(|body| control::handle(&engine.control, scratch, &stats, &method, &body))
                .map_or_else(
                    |error| error.response(),
                    |report| json_response(StatusCode::OK, report.to_string()),
                )
        }
        path => ApiError::new(StatusCode::NOT_FOUND, format!("unknown route: {} {path}", request.method()))
            .response(),
    };
    response.headers_mut().insert("x-engine-sim", HeaderValue::from_static("simulation"));
    Ok(response)
}
