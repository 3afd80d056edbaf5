//! One connection, from accept to its end.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body};
use config::HttpConfig;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use runtime::{Lifecycle, Phase};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

use crate::{
    Peer,
    body::{RequestBody, ResponseBody},
    io::{Activity, TimedIo},
    refusal,
};

/// A request's head must fit into this: what Railway's edge allows, and `deploy/nginx`.
const MAX_HEAD_BYTES: usize = 32 * 1024;

pub(crate) async fn run(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    config: Arc<HttpConfig>,
    lifecycle: Lifecycle,
    activity: Arc<Activity>,
) {
    // Without this the first event of a stream on a kept-alive connection waits 40 ms for the client's delayed ACK.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(TimedIo::new(stream, activity.clone(), &config));
    let body_idle = config.body_idle_timeout;
    let service = service_fn(move |request: Request<Incoming>| {
        activity.request_started();
        let busy = activity.clone();
        let refused = refusal::ambiguous(&request);
        let reading = activity.clone();
        let mut request = request.map(|body| Body::new(RequestBody::new(body, body_idle, reading)));
        request.extensions_mut().insert(peer);
        let answer = match refused {
            None => Ok(router.clone().oneshot(request)),
            Some(detail) => Err(detail),
        };
        async move {
            // When the client goes away hyper drops this future, and everything the handler holds with it.
            let response = match answer {
                Ok(answer) => answer.await.unwrap_or_else(|never: Infallible| match never {}),
                Err(detail) => refusal::response(detail),
            };
            Ok::<_, Infallible>(response.map(|body| ResponseBody::new(body, busy)))
        }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        // The buffer's size counts only while a head is incomplete; this one also when it comes in one piece.
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = lifecycle.reached(Phase::Closing) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = lifecycle.reached(Phase::HardStop) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        // Clients that leave, time out or talk nonsense are everyday life.
        let reason =
            if error.is_timeout() || error.to_string().contains("timed out") { "timeout" } else { "error" };
        metrics::counter!("http_connections_ended_total", "reason" => reason).increment(1);
        tracing::debug!(%error, peer = %peer.0, "connection ended");
    }
}
