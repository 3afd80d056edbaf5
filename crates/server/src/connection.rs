//! One connection, from accept to its end.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body};
use config::HttpConfig;
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use runtime::{Lifecycle, Phase};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

use crate::{
    Peer,
    body::{RequestBody, ResponseBody},
    io::{Activity, TimedIo},
};

/// A request's head must fit into this: what Railway's edge allows, and four times what nginx does.
const MAX_HEAD_BYTES: usize = 32 * 1024;

pub(crate) async fn run(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    config: Arc<HttpConfig>,
    lifecycle: Lifecycle,
) {
    // Without this the first event of a stream on a kept-alive connection waits 40 ms for the client's delayed ACK.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let io = TokioIo::new(TimedIo::new(stream, activity.clone(), &config));
    let body_idle = config.body_idle_timeout;
    let service = service_fn(move |request: Request<Incoming>| {
        activity.request_started();
        let busy = activity.clone();
        let mut request = request.map(|body| Body::new(RequestBody::new(body, body_idle)));
        request.extensions_mut().insert(peer);
        let answer = head_fits(&request).then(|| router.clone().oneshot(request));
        async move {
            // When the client goes away hyper drops this future, and everything the handler holds with it.
            let response = match answer {
                Some(answer) => answer.await.unwrap_or_else(|never: Infallible| match never {}),
                None => head_too_large(),
            };
            Ok::<_, Infallible>(response.map(|body| ResponseBody::new(body, busy)))
        }
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
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

/// Hyper looks at its buffer only while the head is incomplete, so a head that arrives in one piece may be longer.
fn head_fits<B>(request: &Request<B>) -> bool {
    let fields: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let path = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    fields + path <= MAX_HEAD_BYTES
}

fn head_too_large() -> Response<Body> {
    const PROBLEM: &str = r#"{"type":"about:blank","title":"Request Header Fields Too Large","status":431,"detail":"The request's head may have 32 KiB.","code":"head_too_large"}"#;
    let mut response = Response::new(Body::from(PROBLEM));
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let problem = header::HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, problem);
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}
