//! What a handler answers, and the table of handlers by kind.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::{JobContext, JobSpec, json};

/// How an attempt failed. Any error becomes [`JobError::Retry`] through `?`.
#[derive(Debug)]
pub enum JobError {
    /// Try again after the usual backoff, until the attempts are used up.
    Retry(anyhow::Error),
    /// Try again no sooner than this, for example because the other side said so. Counts as an attempt.
    RetryAt(DateTime<Utc>, anyhow::Error),
    /// Try again after this long. Counts as an attempt.
    RetryIn(Duration, anyhow::Error),
    /// Trying again cannot help.
    Discard(anyhow::Error),
}

impl JobError {
    /// Trying again cannot help.
    pub fn discard(error: impl Into<anyhow::Error>) -> Self {
        Self::Discard(error.into())
    }

    /// Try again after this long.
    pub fn retry_in(delay: Duration, error: impl Into<anyhow::Error>) -> Self {
        Self::RetryIn(delay, error.into())
    }
}

impl<E: Into<anyhow::Error>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::Retry(error.into())
    }
}

pub(crate) type Outcome = Result<Option<Value>, JobError>;
type RunFn = dyn Fn(JobContext, &RawValue) -> BoxFuture<'static, Outcome> + Send + Sync;

pub(crate) struct Handler {
    pub(crate) run: Box<RunFn>,
    kind: &'static str,
    queue: &'static str,
    global_limit: Option<u16>,
    metrics: OnceLock<KindMetrics>,
}

impl Handler {
    pub(crate) fn new<J, T, F, Fut>(handler: F) -> Self
    where
        J: JobSpec,
        T: Serialize,
        F: Fn(JobContext, J) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, JobError>> + Send + 'static,
    {
        let run = move |context: JobContext, args: &RawValue| -> BoxFuture<'static, Outcome> {
            let job: J = match serde_json::from_str(args.get()) {
                Ok(job) => job,
                Err(error) => {
                    let error =
                        anyhow::Error::new(error).context("the payload does not fit this kind of job");
                    return Box::pin(async { Err(JobError::Discard(error)) });
                }
            };
            let work = handler(context, job);
            Box::pin(async move { work.await.and_then(|out| result(&out)) })
        };
        Self {
            run: Box::new(run),
            kind: J::NAME,
            queue: J::QUEUE,
            global_limit: J::GLOBAL_LIMIT,
            metrics: OnceLock::new(),
        }
    }

    pub(crate) fn metrics(&self) -> &KindMetrics {
        self.metrics.get_or_init(|| KindMetrics::new(self.kind))
    }
}

/// The metrics of a kind, looked up once: there may be tens of thousands of jobs a second.
pub(crate) struct KindMetrics {
    pub(crate) running: Gauge,
    pub(crate) duration: Histogram,
    completed: Counter,
    kind: &'static str,
}

impl KindMetrics {
    fn new(kind: &'static str) -> Self {
        Self {
            running: gauge!("jobs_running", "kind" => kind),
            duration: histogram!("job_duration_seconds", "kind" => kind),
            completed: attempts(kind, COMPLETED),
            kind,
        }
    }

    /// One attempt ended like this.
    pub(crate) fn count(&self, outcome: &'static str) {
        if outcome == COMPLETED {
            self.completed.increment(1);
        } else {
            attempts(self.kind, outcome).increment(1);
        }
    }
}

pub(crate) const COMPLETED: &str = "completed";

fn attempts(kind: &'static str, outcome: &'static str) -> Counter {
    counter!("job_attempts_total", "kind" => kind, "outcome" => outcome)
}

/// What a handler returned, as it is stored. The work is done when this is called, so a result that cannot be stored
/// must not cause another attempt.
pub(crate) fn result(out: &impl Serialize) -> Outcome {
    let stored =
        |out: &dyn fmt::Display| anyhow::anyhow!("the job is done but its result cannot be stored: {out}");
    let value = serde_json::to_value(out).map_err(|e| JobError::Discard(stored(&e)))?;
    json::check(&value).map_err(|reason| JobError::Discard(stored(&reason)))?;
    if json::len(&value) > crate::MAX_PAYLOAD_BYTES {
        return Err(JobError::Discard(stored(&"it is too large")));
    }
    Ok(Some(value).filter(|v| !v.is_null()))
}

/// Handlers by kind.
#[derive(Default, Clone)]
pub(crate) struct Handlers(pub(crate) HashMap<&'static str, Arc<Handler>>);

impl Handlers {
    /// Every kind.
    pub(crate) fn kinds(&self) -> Kinds {
        Kinds::of(self.0.values().map(AsRef::as_ref))
    }

    /// The kinds to look for in this queue. Where a kind with a limit lives, only what lives there too: the index does not
    /// know kinds, so each look for one walks over all jobs of the others. Elsewhere kinds with a limit are left out.
    pub(crate) fn kinds_of(&self, queue: &str) -> Kinds {
        let home = Kinds::of(self.0.values().map(AsRef::as_ref).filter(|h| h.queue == queue));
        if home.limited.is_empty() { Kinds { limited: Vec::new(), ..self.kinds() } } else { home }
    }
}

/// Names of kinds, by whether they have a global limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kinds {
    pub(crate) free: Vec<String>,
    pub(crate) limited: Vec<(String, u16)>,
}

impl Kinds {
    fn of<'h>(handlers: impl Iterator<Item = &'h Handler>) -> Self {
        let mut kinds = Self { free: Vec::new(), limited: Vec::new() };
        for handler in handlers {
            match handler.global_limit {
                None => kinds.free.push(handler.kind.to_owned()),
                Some(limit) => kinds.limited.push((handler.kind.to_owned(), limit)),
            }
        }
        kinds
    }
}
