//! Mixed load: sessions that are renewed all the time, requests by key, streams, jobs; and the judgement of each answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::RECOVERY;
use crate::http::{self, Answer, string_field};
use crate::machine;
use crate::smoke::Demo;

const SESSIONS: usize = 4;
const READERS: usize = 4;
const STREAMS: usize = 6;
const JOBS: usize = 2;
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(200);
/// So many failures are told.
const TOLD: usize = 10;

/// A load that goes on until [`Load::end`].
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Tally>,
}

/// What came of it.
pub(crate) struct Accepted {
    /// Ids of the jobs that the API took.
    pub(crate) jobs: Vec<u64>,
    pub(crate) summary: String,
}

/// How an answer is to be read.
enum Verdict {
    Good,
    /// Fine while something is broken, or while other programs have the cores: refused with 502, 503 or 504, broken off, or nobody
    /// was there.
    Refused(String),
    /// Never fine.
    Wrong(String),
}

#[derive(Default)]
struct Tally {
    ports: Vec<u16>,
    turn: AtomicUsize,
    good: AtomicUsize,
    streams: AtomicUsize,
    refused: AtomicUsize,
    refused_when_busy: AtomicUsize,
    jobs: Mutex<Vec<u64>>,
    failures: Mutex<Vec<String>>,
    troubles: Mutex<Troubles>,
}

/// When something was broken.
#[derive(Debug, Default)]
struct Troubles(Vec<(Instant, Option<Instant>)>);

impl Troubles {
    /// Whether something was broken, or had just been mended, at any time between these two.
    fn overlap(&self, from: Instant, to: Instant) -> bool {
        self.0.iter().any(|(begun, over)| *begun <= to && over.is_none_or(|over| over + RECOVERY >= from))
    }
}

impl Load {
    pub(crate) fn start(ports: &[u16], demo: &Demo) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Tally { ports: ports.to_vec(), ..Tally::default() });
        let mut threads = Vec::new();
        let mut spawn = |count: usize, work: fn(&Tally, &Demo, &AtomicBool)| {
            for _ in 0..count {
                let (stop, tally, demo) = (stop.clone(), tally.clone(), demo.clone());
                threads.push(thread::spawn(move || work(&tally, &demo, &stop)));
            }
        };
        spawn(SESSIONS, session);
        spawn(READERS, |tally, demo, stop| {
            repeat(stop, || {
                let _ = tally.ask("GET", "/v1/usage", &[("x-api-key", &demo.api_key)], "", 200);
            });
        });
        spawn(STREAMS, |tally, demo, stop| repeat(stop, || tally.stream(demo)));
        spawn(JOBS, |tally, demo, stop| repeat(stop, || tally.job(demo)));
        Self { stop, threads, tally }
    }

    /// From now on something is broken.
    pub(super) fn trouble(&self) -> usize {
        let mut troubles = self.tally.troubles.lock().expect("no thread panicked");
        troubles.0.push((Instant::now(), None));
        troubles.0.len() - 1
    }

    /// It is mended.
    pub(super) fn over(&self, trouble: usize) {
        self.tally.troubles.lock().expect("no thread panicked").0[trouble].1 = Some(Instant::now());
    }

    /// An error when anything failed that must not.
    pub(super) fn check(&self) -> Result<()> {
        let failures = self.tally.failures.lock().expect("no thread panicked");
        let told = failures.iter().take(TOLD).cloned().collect::<Vec<_>>().join("\n  ");
        ensure!(failures.is_empty(), "{} failures, the first of them:\n  {told}", failures.len());
        Ok(())
    }

    pub(super) fn summary(&self) -> String {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let jobs = self.tally.jobs.lock().expect("no thread panicked").len();
        let busy = match count(&self.tally.refused_when_busy) {
            0 => String::new(),
            refused => format!(", {refused} more while other programs had the cores"),
        };
        format!(
            "{} good answers, {} whole streams, {jobs} jobs, {} refused during faults{busy}",
            count(&self.tally.good),
            count(&self.tally.streams),
            count(&self.tally.refused)
        )
    }

    /// Waits for what is under way.
    pub(crate) fn end(mut self) -> Result<Accepted> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let panicked = thread.join().is_err();
            ensure!(!panicked, "a thread of the load panicked");
        }
        self.check()?;
        let summary = self.summary();
        let jobs = std::mem::take(&mut *self.tally.jobs.lock().expect("no thread panicked"));
        Ok(Accepted { jobs, summary })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn repeat(stop: &AtomicBool, mut work: impl FnMut()) {
    while !stop.load(Ordering::Relaxed) {
        work();
        thread::sleep(PAUSE);
    }
}

/// Logs in once. Then a refresh and a request with what it gave, again and again: a refresh whose answer was lost is
/// repeated with the same token, and the session must survive that.
fn session(tally: &Tally, demo: &Demo, stop: &AtomicBool) {
    let credentials = format!(r#"{{"email":"{}","password":"{}"}}"#, demo.email, demo.password);
    let mut refresh = None;
    repeat(stop, || {
        let answer = match &refresh {
            None => tally.ask("POST", "/v1/auth/login", &[], &credentials, 200),
            Some(token) => {
                let body = format!(r#"{{"refresh_token":"{token}"}}"#);
                tally.ask("POST", "/v1/auth/refresh", &[], &body, 200)
            }
        };
        let Some(answer) = answer else { return };
        refresh = string_field(&answer.body, "refresh_token");
        let bearer = format!("Bearer {}", string_field(&answer.body, "access_token").unwrap_or_default());
        let _ = tally.ask("GET", "/v1/me", &[("authorization", &bearer)], "", 200);
    });
}

impl Tally {
    /// Asks the replicas in turn; the answer if it is the wanted one.
    fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
        wanted: u16,
    ) -> Option<Answer> {
        let from = Instant::now();
        let port = self.ports[self.turn.fetch_add(1, Ordering::Relaxed) % self.ports.len()];
        let answer = http::request(port, method, path, headers, body);
        let (verdict, answer) = match answer {
            Ok(answer) if answer.status == wanted => (Verdict::Good, Some(answer)),
            Ok(answer) => (judge(&answer), None),
            Err(error) => (Verdict::Refused(format!("{error:#}")), None),
        };
        self.count(&format!("{method} {path}"), from, verdict);
        answer
    }

    fn count(&self, what: &str, from: Instant, verdict: Verdict) {
        let failed = |said: String| {
            let mut failures = self.failures.lock().expect("no thread panicked");
            failures.push(format!("{what}: {said}"));
        };
        match verdict {
            Verdict::Good => {
                self.good.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Refused(said) => {
                let to = Instant::now();
                if self.troubles.lock().expect("no thread panicked").overlap(from, to) {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                } else if machine::is_busy() {
                    self.refused_when_busy.fetch_add(1, Ordering::Relaxed);
                } else {
                    failed(format!("while all was well: {said}"));
                }
            }
            Verdict::Wrong(said) => failed(said),
        }
    }

    /// Three seconds or so. A shutdown lets it end; a lost engine ends it with an event that says so.
    fn stream(&self, demo: &Demo) {
        const BODY: &str = r#"{"model":"sim-small","stream":true,"messages":[{"role":"user","content":"[[sim tokens=40 token-interval-ms=70]] go on"}]}"#;
        let from = Instant::now();
        let path = "/v1/chat/completions";
        let Some(answer) = self.ask("POST", path, &[("x-api-key", &demo.api_key)], BODY, 200) else { return };
        if answer.body.contains("[DONE]") {
            self.streams.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let end = answer.body.get(answer.body.len().saturating_sub(200)..).unwrap_or_default();
        self.count("a stream", from, Verdict::Refused(format!("it ended so: {end}")));
    }

    fn job(&self, demo: &Demo) {
        let sleep_ms = 100 * (self.turn.load(Ordering::Relaxed) % 20);
        let body = format!(r#"{{"kind":"echo","args":{{"message":"soak","sleep_ms":{sleep_ms}}}}}"#);
        let key = [("x-api-key", demo.api_key.as_str())];
        let Some(answer) = self.ask("POST", "/v1/jobs", &key, &body, 202) else { return };
        let id = string_field(&answer.body, "id").and_then(|id| id.parse().ok());
        if let Some(id) = id.or_else(|| http::max_number_field(&answer.body, "id")) {
            self.jobs.lock().expect("no thread panicked").push(id);
        } else {
            let said = format!("no id: {}", answer.body);
            self.count("POST /v1/jobs", Instant::now(), Verdict::Wrong(said));
        }
    }
}

fn judge(answer: &Answer) -> Verdict {
    let said = format!("{} {}", answer.status, answer.body);
    match answer.status {
        502..=504 => Verdict::Refused(said),
        _ => Verdict::Wrong(said),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_forgiven_from_the_fault_to_the_end_of_the_recovery_and_not_longer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut troubles = Troubles(vec![(at(100), None)]);
        assert!(!troubles.overlap(at(0), at(99)));
        assert!(troubles.overlap(at(0), at(100)) && troubles.overlap(at(500), at(501)));
        troubles.0[0].1 = Some(at(105));
        let end = 105 + RECOVERY.as_secs();
        assert!(troubles.overlap(at(end), at(end + 1)));
        assert!(!troubles.overlap(at(end + 1), at(end + 2)));
    }

    #[test]
    fn a_busy_server_may_refuse_and_nobody_may_deny_a_good_token() {
        let answer =
            |status| Answer { status, headers: String::new(), body: String::new(), pieces: Vec::new() };
        assert!(matches!(judge(&answer(503)), Verdict::Refused(_)));
        for status in [200, 401, 404, 429, 500] {
            assert!(matches!(judge(&answer(status)), Verdict::Wrong(_)), "{status}");
        }
    }
}
