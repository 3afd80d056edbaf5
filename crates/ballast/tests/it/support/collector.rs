//! Takes everything that is posted to it: in the place of Sentry and of an OTLP collector.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, extract::State, http::Uri};

type Seen = Arc<Mutex<Vec<(String, Bytes)>>>;

pub(crate) struct Collector {
    /// Host and port.
    pub(crate) address: String,
    seen: Seen,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let seen = Seen::default();
        let router = Router::new()
            .fallback(|State(seen): State<Seen>, uri: Uri, body: Bytes| async move {
                seen.lock().unwrap().push((uri.path().to_owned(), body));
                "{}"
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
