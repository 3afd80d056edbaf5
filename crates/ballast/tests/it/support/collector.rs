//! Takes everything that is posted to it: in the place of Sentry and of an OTLP collector.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, Uri},
    response::AppendHeaders,
};

type Seen = Arc<Mutex<Vec<(String, Bytes)>>>;

pub(crate) struct Collector {
    /// Host and port.
    pub(crate) address: String,
    seen: Seen,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::answering(200).await
    }

    /// Answers with this status, after it has taken note; a refusal says to come again in a minute.
    pub(crate) async fn answering(status: u16) -> Self {
        let seen = Seen::default();
        let status = StatusCode::from_u16(status).unwrap();
        let router = Router::new()
            .fallback(async move |State(seen): State<Seen>, uri: Uri, body: Bytes| {
                seen.lock().unwrap().push((uri.path().to_owned(), body));
                // Senders heed it whatever the status is.
                let wait = [("retry-after", "60")].into_iter().take(usize::from(!status.is_success()));
                (status, AppendHeaders(wait), "{}")
            })
            .with_state(seen.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, seen }
    }

    /// All bodies that came on paths that contain this.
    pub(crate) fn bytes(&self, path: &str) -> Vec<u8> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(p, _)| p.contains(path)).flat_map(|(_, body)| body.to_vec()).collect()
    }

    /// The same as text; what is no UTF-8 is replaced.
    pub(crate) fn text(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.bytes(path)).into_owned()
    }
}
