//! What a handler answers, and the table of handlers by kind.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
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
    pub(crate) global_limit: Option<u16>,
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
        Self { run: Box::new(run), global_limit: J::GLOBAL_LIMIT }
    }
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
    /// The kinds that run without a global limit.
    pub(crate) fn free_kinds(&self) -> Vec<String> {
        let free = self.0.iter().filter(|(_, h)| h.global_limit.is_none());
        free.map(|(kind, _)| (*kind).to_owned()).collect()
    }

    /// The kinds that run with one.
    pub(crate) fn limited_kinds(&self) -> Vec<(String, u16)> {
        self.0
            .iter()
            .filter_map(|(kind, h)| h.global_limit.map(|limit| ((*kind).to_owned(), limit)))
            .collect()
    }
}
