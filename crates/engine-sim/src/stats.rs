//! Counters that a test can read: what came in, what was answered, and who left when.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;

const KEPT_CANCELLATIONS: usize = 10_000;

/// A snapshot of the counters. `requests_total` is always the sum of open, completed, cancelled and faulted; only `/v1/...`
/// counts.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Connections accepted and not yet closed, also idle and `/control` ones.
    pub connections_open: u64,
    /// Connections accepted so far.
    pub connections_total: u64,
    /// Requests whose answer is not complete.
    pub requests_open: u64,
    /// Requests seen so far.
    pub requests_total: u64,
    /// Answered to the end, errors included.
    pub completed: u64,
    /// The client left before the end.
    pub cancelled: u64,
    /// The simulation broke the connection on purpose.
    pub faulted: u64,
    /// The last 10,000 cancellations, oldest first.
    pub cancellations: VecDeque<Cancellation>,
    /// The last request that arrived whole.
    pub last_request: Option<SeenRequest>,
}

/// One request whose client left.
#[derive(Debug, Clone)]
pub struct Cancellation {
    /// Path of the request.
    pub path: String,
    /// When the simulation noticed.
    pub at: Instant,
    /// How long after the beginning of the request.
    pub after: Duration,
    /// How far the answer had got.
    pub phase: Phase,
    /// Chunks handed to the connection before.
    pub chunks: u64,
}

/// How far an answer had got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No response head yet.
    BeforeHeaders,
    /// The head is out, the body is not complete.
    Streaming,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct SeenRequest {
    /// `POST`, `GET`, ...
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Cancelled,
    Faulted,
}

/// Where the counters live. One mutex: it is taken a few times per request, never per chunk.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Stats>);

impl Recorder {
    pub(crate) fn snapshot(&self) -> Stats {
        self.lock().clone()
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn connection(self: &Arc<Self>) -> OpenConnection {
        let mut stats = self.lock();
        stats.connections_open += 1;
        stats.connections_total += 1;
        OpenConnection(self.clone())
    }

    /// Counts a request until the guard is finished or dropped.
    pub(crate) fn request(self: &Arc<Self>, path: &str) -> Exchange {
        let mut stats = self.lock();
        stats.requests_open += 1;
        stats.requests_total += 1;
        Exchange {
            recorder: self.clone(),
            path: path.to_owned(),
            began: Instant::now(),
            phase: Phase::BeforeHeaders,
            chunks: 0,
            finished: false,
        }
    }

    pub(crate) fn seen(&self, parts: &Parts, body: &Bytes) {
        self.lock().last_request = Some(SeenRequest {
            method: parts.method.to_string(),
            uri: parts.uri.to_string(),
            headers: parts.headers.clone(),
            body: body.clone(),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        // Counters stay meaningful whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct OpenConnection(Arc<Recorder>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.lock().connections_open -= 1;
    }
}

/// One request. Dropped unfinished, it was cancelled: hyper drops service and body when the client is gone.
#[derive(Debug)]
pub(crate) struct Exchange {
    recorder: Arc<Recorder>,
    path: String,
    began: Instant,
    pub(crate) phase: Phase,
    pub(crate) chunks: u64,
    finished: bool,
}

impl Exchange {
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut stats = self.recorder.lock();
        stats.requests_open -= 1;
        match outcome {
            Outcome::Completed => stats.completed += 1,
            Outcome::Faulted => stats.faulted += 1,
            Outcome::Cancelled => {
                stats.cancelled += 1;
                if stats.cancellations.len() == KEPT_CANCELLATIONS {
                    stats.cancellations.pop_front();
                }
                stats.cancellations.push_back(Cancellation {
                    path: std::mem::take(&mut self.path),
                    at: Instant::now(),
                    after: self.began.elapsed(),
                    phase: self.phase,
                    chunks: self.chunks,
                });
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.finish(Outcome::Cancelled);
    }
}
