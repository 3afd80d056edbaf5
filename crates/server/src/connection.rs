//! One connection, from accept to its end.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::BytesMut;
use config::HttpConfig;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use runtime::{Lifecycle, Phase};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tower::ServiceExt as _;

use crate::{
    Peer,
    body::{RequestBody, ResponseBody},
    io::{Activity, TimedIo},
    refusal,
    stream::{Asked, EventStream},
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
    let io = TimedIo::new(stream, activity.clone(), &config);
    let body_idle = config.body_idle_timeout;
    let connection = Connection { peer, router, body_idle, activity, lifecycle: lifecycle.clone() };
    let cut = async {
        lifecycle.reached(Phase::Closing).await;
        lifecycle.reached(Phase::HardStop).await;
    };
    let ended = tokio::select! {
        ended = connection.serve(io) => ended,
        () = cut => Ok(()),
    };
    if let Err(error) = ended {
        // Clients that leave, time out or talk nonsense are everyday life.
        let reason = if is_timeout(&*error) { "timeout" } else { "error" };
        metrics::counter!("http_connections_ended_total", "reason" => reason).increment(1);
        tracing::debug!(error, peer = %peer.0, "connection ended");
    }
}

fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

struct Connection {
    peer: Peer,
    router: Router,
    body_idle: Duration,
    activity: Arc<Activity>,
    lifecycle: Lifecycle,
}

type Error = Box<dyn std::error::Error + Send + Sync>;
type HandedOver = Arc<Mutex<Option<EventStream>>>;

impl Connection {
    /// Hyper's, and ours for as long as an answer is an event stream.
    async fn serve(&self, mut io: TimedIo) -> Result<(), Error> {
        while let Some((rest, mut ahead, mut stream)) = self.serve_with_hyper(io).await? {
            io = rest;
            poll_fn(|cx| stream.poll(cx, &mut io, &mut ahead)).await?;
            let keep_alive = stream.keep_alive;
            // With its end the answer counts as given.
            drop(stream);
            if !keep_alive || self.lifecycle.phase() >= Phase::Closing {
                io.shutdown().await?;
                return Ok(());
            }
            io.put_back(ahead);
        }
        Ok(())
    }

    /// Until the connection's end, or until an answer is an event stream: then with what is left of the connection, and what
    /// the client has sent ahead.
    async fn serve_with_hyper(&self, io: TimedIo) -> hyper::Result<Option<(TimedIo, BytesMut, EventStream)>> {
        let handed_over = HandedOver::default();
        let service = service_fn(|request| self.answer(request, handed_over.clone()));
        let connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD_BYTES)
            // The buffer's size counts only while a head is incomplete; this one also when it comes in one piece.
            .max_header_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(io), service);
        // On the heap, so that an event stream does not keep its place.
        let mut connection = Box::new(connection);
        let mut closing = std::pin::pin!(self.lifecycle.reached(Phase::Closing));
        let mut is_closing = false;
        let stream = poll_fn(|cx| {
            if !is_closing && closing.as_mut().poll(cx).is_ready() {
                is_closing = true;
                Pin::new(&mut *connection).graceful_shutdown();
            }
            if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(cx) {
                return Poll::Ready(ended.map(|()| None));
            }
            // Not before hyper has written all of the answers before this one.
            if self.activity.is_between()
                && let Some(stream) = handed_over.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                return Poll::Ready(Ok(Some(stream)));
            }
            Poll::Pending
        })
        .await?;
        Ok(stream.map(|stream| {
            let parts = connection.into_parts();
            // A copy, because these bytes, however few, would keep hyper's buffer.
            (parts.io.into_inner(), BytesMut::from(&parts.read_buf[..]), stream)
        }))
    }

    fn answer(
        &self,
        request: Request<Incoming>,
        handed_over: HandedOver,
    ) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
        let (activity, lifecycle) = (self.activity.clone(), self.lifecycle.clone());
        activity.request_started();
        let mut asked = Asked::of(&request);
        let refused = refusal::ambiguous(&request);
        let mut request =
            request.map(|body| Body::new(RequestBody::new(body, self.body_idle, activity.clone())));
        request.extensions_mut().insert(self.peer);
        let answer = match refused {
            None => Ok(self.router.clone().oneshot(request)),
            Some(detail) => Err(detail),
        };
        async move {
            // When the client goes away hyper drops this future, and everything the handler holds with it.
            let response = match answer {
                Ok(answer) => answer.await.unwrap_or_else(|never: Infallible| match never {}),
                Err(detail) => refusal::response(detail),
            };
            let read = activity.is_between();
            let response = response.map(|body| ResponseBody::new(body, activity));
            if !read || !EventStream::is(&response, asked) {
                return Ok(response);
            }
            asked.keep_alive &= lifecycle.phase() < Phase::Closing;
            let stream = EventStream::new(response, asked);
            *handed_over.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use config::ShutdownConfig;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn small_writes_are_not_held_back_for_an_acknowledgement() {
        const TIME: Duration = Duration::from_secs(5);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let stream = stream.into_std().unwrap();
        // Options belong to the socket, whoever holds it.
        let same = stream.try_clone().unwrap();
        assert!(!same.nodelay().unwrap());
        let config = HttpConfig {
            host: [127, 0, 0, 1].into(),
            port: 0,
            admin_port: None,
            header_timeout: TIME,
            body_idle_timeout: TIME,
            keep_alive: TIME,
            write_stall_timeout: TIME,
            max_connections: 1,
        };
        let lifecycle = Lifecycle::new(ShutdownConfig { delay: Duration::ZERO, budget: TIME });
        let stream = TcpStream::from_std(stream).unwrap();
        let serving = run(stream, Peer(peer), Router::new(), config.into(), lifecycle, Arc::default());
        tokio::select! {
            () = serving => panic!("it waits for a request"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        assert!(same.nodelay().unwrap());
    }
}
