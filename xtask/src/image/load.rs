//! Requests and streams in the background, while something else happens.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http;

/// So many of each kind of failure are told.
const TOLD: usize = 5;

/// A load that goes on until [`Load::end`].
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Tally>,
    started: Instant,
}

#[derive(Default)]
struct Tally {
    requests: AtomicUsize,
    streams: AtomicUsize,
    drained: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Served {
    /// Ordinary requests.
    pub requests: usize,
    /// Streams that came to their own end.
    pub streams: usize,
    /// Streams that a shutdown ended, with an event that says so.
    pub drained: usize,
    /// Ordinary requests a second.
    pub rate: f64,
}

impl Load {
    /// `rate` requests a second and `streams` streams at a time, from a handful of client addresses.
    pub(super) fn start(port: u16, key: &str, rate: u32, streams: usize) -> Self {
        const REQUESTERS: u32 = 20;
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let mut threads = Vec::new();
        for number in 0..REQUESTERS {
            let (stop, tally, key) = (stop.clone(), tally.clone(), key.to_owned());
            let pause = Duration::from_secs(1) * REQUESTERS / rate;
            threads.push(thread::spawn(move || {
                let mut next = Instant::now() + pause * number / REQUESTERS;
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += pause;
                    tally.request(port, &key, number);
                }
            }));
        }
        for number in 0..streams {
            let (stop, tally, key) = (stop.clone(), tally.clone(), key.to_owned());
            threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    tally.stream(port, &key, number as u32);
                }
            }));
        }
        Self { stop, threads, tally, started: Instant::now() }
    }

    /// Waits for what is under way; an error when anything failed.
    pub(super) fn end(self) -> Result<Served> {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        self.stop.store(true, Ordering::Relaxed);
        // Before the streams under way end, which takes seconds without a request.
        let rate = count(&self.tally.requests) as f64 / self.started.elapsed().as_secs_f64();
        for thread in self.threads {
            let _ = thread.join();
        }
        let failures = self.tally.failures.lock().expect("no thread panicked");
        ensure!(
            failures.is_empty(),
            "{} requests failed meanwhile, among them:\n  {}",
            failures.len(),
            failures.iter().take(TOLD).cloned().collect::<Vec<_>>().join("\n  ")
        );
        Ok(Served {
            requests: count(&self.tally.requests),
            streams: count(&self.tally.streams),
            drained: count(&self.tally.drained),
            rate,
        })
    }
}

impl Tally {
    fn request(&self, port: u16, key: &str, number: u32) {
        let answer = http::request(port, "GET", "/v1/usage", &headers(key, &address(number)), "");
        match answer {
            Ok(answer) if answer.status == 200 => {
                self.requests.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => self.failed(&format!("GET /v1/usage: {} {}", answer.status, answer.body)),
            Err(error) => self.failed(&format!("GET /v1/usage: {error:#}")),
        }
    }

    /// A stream of some ten seconds: longer than the new release takes, shorter than the grace of the old one.
    fn stream(&self, port: u16, key: &str, number: u32) {
        let body = r#"{"model":"sim-small","stream":true,"messages":[{"role":"user","content":"[[sim tokens=100 token-interval-ms=100]] go on"}]}"#;
        let answer =
            http::request(port, "POST", "/v1/chat/completions", &headers(key, &address(number + 100)), body);
        match answer {
            Ok(answer) if answer.status == 200 && answer.body.contains("[DONE]") => {
                self.streams.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) if answer.status == 200 && answer.body.contains("server_shutdown") => {
                self.drained.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => {
                let end = answer.body.len().saturating_sub(200);
                let end = answer.body.get(end..).unwrap_or_default();
                self.failed(&format!("a stream: {} ...{end}", answer.status));
            }
            Err(error) => self.failed(&format!("a stream: {error:#}")),
        }
    }

    fn failed(&self, what: &str) {
        self.failures.lock().expect("no thread panicked").push(what.to_owned());
        // What fails at once is not tried again at once.
        thread::sleep(Duration::from_millis(200));
    }
}

/// As a balancer in front of the edge would name them: its zones are per client.
fn address(number: u32) -> String {
    format!("198.51.100.{}", number % 200 + 1)
}

fn headers<'a>(key: &'a str, address: &'a str) -> [(&'a str, &'a str); 2] {
    [("x-api-key", key), ("x-forwarded-for", address)]
}
