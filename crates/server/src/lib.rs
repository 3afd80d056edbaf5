//! The HTTP/1.1 accept loop that every role serves with.
//!
//! `axum::serve` is the library one could use instead. It has no header timeout, no connection cap, no answer to a client that
//! reads nothing, and no deadline for its graceful shutdown; an API on the open network needs all four. See
//! `docs/decisions/0003-own-accept-loop.md`.
//!
//! What it does for every connection:
//!
//! | timer | from | to | default |
//! |---|---|---|---|
//! | header | accept, and again the first byte of a request | the end of the request's head | 10 s |
//! | keep-alive | the end of an answer | the first byte of the next request | 75 s |
//! | body idle | one part of a request's body | the next | 20 s |
//! | body | the first wait for a request's body | its end | 20 s, and a second for each KiB of it |
//! | write stall | a write that the client does not take | the next byte it takes | 30 s |
//! | linger | an answer that came before the whole request | the client's end of the connection | 2 s |
//!
//! Beyond `HTTP_MAX_CONNECTIONS`, connections on which nothing is being asked are closed for new ones, the oldest first.
//!
//! Hyper's own header timer covers neither the time before the first byte nor keep-alive apart from the head, and nothing in
//! hyper times writes: a body is not polled while the client takes nothing. So reads and writes are timed where they
//! happen, in the I/O wrapper.

mod body;
mod connection;
mod io;
mod listener;
mod open_files;
mod refusal;
mod room;
mod stream;

pub use body::{RequestBody, ResponseBody};
pub use listener::bind;
pub use refusal::{SECURITY_HEADERS, complete};

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use config::HttpConfig;
use runtime::{Counted, Lifecycle, Phase};
use tokio::net::TcpListener;

use room::Room;

/// The address of the socket's other end, in every request's extensions. Behind a proxy this is the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Serves `router` on `listener` until the lifecycle reaches [`Phase::Closing`]; then no connection is accepted, idle ones
/// are closed, and those with a request under way are closed after its answer. Connections still open at
/// [`Phase::HardStop`] are cut.
pub async fn serve(listener: TcpListener, router: Router, config: HttpConfig, lifecycle: Lifecycle) {
    let room = Room::new(open_files::most_connections(config.max_connections));
    let config = Arc::new(config);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = lifecycle.reached(Phase::Closing) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // While there is no place, further connections wait in the kernel's listen queue.
                let place = tokio::select! {
                    place = room.place() => place,
                    () = lifecycle.reached(Phase::Closing) => break,
                };
                let connection = connection::run(
                    stream,
                    Peer(peer),
                    router.clone(),
                    config.clone(),
                    lifecycle.clone(),
                    place.activity.clone(),
                );
                lifecycle.spawn_task(async move {
                    let _counted = Counted::in_gauge(metrics::gauge!("http_connections"));
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Mostly "too many open files": trying again at once would only burn the CPU.
                tracing::error!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tracing::debug!("the listener is closed");
}
