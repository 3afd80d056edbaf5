//! Somebody who is told by webhook.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode},
};

/// A server on the loopback interface that keeps what it gets, and answers as it is told.
pub(crate) struct Receiver {
    pub(crate) url: String,
    received: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Receiver {
    /// Answers with these statuses one after the other, and 204 from then on.
    pub(crate) async fn start(statuses: &[u16]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let (kept, statuses) =
            (received.clone(), Mutex::new(statuses.iter().copied().collect::<VecDeque<u16>>()));
        let statuses = Arc::new(statuses);
        let router = Router::new().fallback(async move |headers: HeaderMap, body: Bytes| {
            kept.lock().unwrap().push((headers, body));
            let status = statuses.lock().unwrap().pop_front().unwrap_or(204);
            StatusCode::from_u16(status).unwrap()
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, received }
    }

    pub(crate) fn received(&self) -> Vec<(HeaderMap, Bytes)> {
        self.received.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }
}
