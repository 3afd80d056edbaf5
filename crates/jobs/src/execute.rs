//! One attempt at one job, from the claim to its acknowledgement.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use runtime::{Counted, Lifecycle, Phase};
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    JobContext, JobError,
    ack::{Ack, Back, Final, Key, Pending, When},
    claim::Claimed,
    handler::{COMPLETED, Handler, Outcome},
    held::HeldJob,
    lease::Session,
};

/// A cancelled job has so long to end by itself before it is dropped. Shorter than the shutdown's goodbye, so that there is
/// time to hand it back.
const CANCEL_GRACE: Duration = Duration::from_secs(1);
/// Full jitter between nothing and this, doubled with each attempt.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(3_600);

/// When the process wants its jobs to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stops {
    pub(crate) last_call: CancellationToken,
    pub(crate) hard_stop: CancellationToken,
}

impl Stops {
    pub(crate) fn of(lifecycle: &Lifecycle) -> Self {
        let token = |phase| lifecycle.token(phase).cloned().unwrap_or_default();
        Self { last_call: token(Phase::LastCall), hard_stop: token(Phase::HardStop) }
    }
}

/// Why a job is to end before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Somebody cancelled it.
    Cancelled,
    /// The process stops.
    Shutdown,
    /// Another worker may have it by now.
    LeaseLost,
    /// Its time is up.
    TimedOut,
}

/// How an attempt ended.
enum Ended {
    Ok(Option<serde_json::Value>),
    Failed(JobError),
    Panicked(String),
    /// It was dropped after the grace.
    Dropped,
}

/// Runs the job and says what to write about it; `None` when nothing may be written any more.
pub(crate) async fn run(
    job: Claimed,
    held: HeldJob,
    handler: Arc<Handler>,
    session: Session,
    stops: Stops,
    pool: PgPool,
) -> Option<Pending> {
    let span = tracing::info_span!(
        "job",
        kind = %job.kind,
        id = job.key.id,
        attempt = job.attempt,
        trace_id = tracing::field::Empty,
    );
    if let Some(parent) = &job.traceparent {
        runtime::trace_context::set_parent(&span, parent);
    }
    runtime::trace_context::identify(&span);
    async {
        let begun = Instant::now();
        // A child, so that a lost lease reaches the handler at once.
        let token = session.lost.child_token();
        let context = JobContext::new(&job, pool, token.clone());
        let (ended, stop) = if job.cancel_requested {
            (Ended::Dropped, Some(Stop::Cancelled))
        } else {
            let _running = Counted::in_gauge(handler.metrics().running.clone());
            let work =
                AssertUnwindSafe(async { (handler.run)(context.clone(), &job.args).await }).catch_unwind();
            supervise(work, job.timeout, &held, &session, &stops, &token).await
        };
        token.cancel();
        let (ack, outcome) = decide(&job, &context, ended, stop);
        let took = begun.elapsed();
        handler.metrics().count(outcome);
        handler.metrics().duration.record(took.as_secs_f64());
        tracing::debug!(outcome, ms = took.as_millis() as u64, "attempt ended");
        ack.map(|ack| Pending { ack, _held: held })
    }
    .instrument(span)
    .await
}

/// Runs the work to its end, or to the end of the grace after it was told to stop.
async fn supervise(
    work: impl Future<Output = Result<Outcome, Box<dyn Any + Send>>>,
    limit: Duration,
    held: &HeldJob,
    session: &Session,
    stops: &Stops,
    token: &CancellationToken,
) -> (Ended, Option<Stop>) {
    let mut work = std::pin::pin!(work);
    let ended = |outcome: Result<Outcome, Box<dyn Any + Send>>| match outcome {
        Ok(Ok(result)) => Ended::Ok(result),
        Ok(Err(error)) => Ended::Failed(error),
        Err(panic) => Ended::Panicked(panic_text(&*panic)),
    };
    let stop = tokio::select! {
        biased;
        outcome = &mut work => return (ended(outcome), None),
        () = session.lost.cancelled() => Stop::LeaseLost,
        () = held.cancelled().cancelled() => Stop::Cancelled,
        () = stops.last_call.cancelled() => Stop::Shutdown,
        () = tokio::time::sleep(limit) => Stop::TimedOut,
    };
    token.cancel();
    // Without the lease somebody else may begin the job any moment: no grace.
    let grace = if stop == Stop::LeaseLost { Duration::ZERO } else { CANCEL_GRACE };
    let grace = tokio::time::timeout(grace, work);
    let outcome = tokio::select! {
        outcome = grace => outcome.map_or(Ended::Dropped, ended),
        () = stops.hard_stop.cancelled() => Ended::Dropped,
    };
    (outcome, Some(stop))
}

fn decide(
    job: &Claimed,
    context: &JobContext,
    ended: Ended,
    stop: Option<Stop>,
) -> (Option<Ack>, &'static str) {
    let key = job.key;
    // A job that got done in time is done, whoever wanted it to stop; and if it panicked, that is no cancellation.
    let error = match (ended, stop) {
        (Ended::Ok(_), _) if context.completed_by_handler() => {
            let back = Back::failed(key, backoff(job.attempt), "complete_in was called but not committed");
            return (Some(Ack::Confirm(back)), COMPLETED);
        }
        (Ended::Ok(result), _) => return (Some(Ack::Final(Final::completed(key, result))), COMPLETED),
        // The rescuers take care of it.
        (_, Some(Stop::LeaseLost)) => return (None, "lost"),
        (Ended::Panicked(text), _) => JobError::Retry(anyhow::anyhow!("panicked: {text}")),
        (Ended::Failed(error @ JobError::Discard(_)), _) | (Ended::Failed(error), None) => error,
        (_, Some(Stop::Cancelled)) => {
            return (Some(Ack::Final(Final::cancelled(key, None))), "cancelled");
        }
        (_, Some(Stop::Shutdown)) => return (Some(Ack::Back(Back::released(key))), "released"),
        (_, Some(Stop::TimedOut)) => JobError::Retry(anyhow::anyhow!("timed out after {:?}", job.timeout)),
        (Ended::Dropped, None) => JobError::Retry(anyhow::anyhow!("was dropped")),
    };
    let (ack, outcome) = failed(job, key, error);
    // The handler may have committed its completion and failed after it: then there is nothing to write, as it should be.
    match ack {
        Ack::Back(back) if context.completed_by_handler() => (Some(Ack::Confirm(back)), outcome),
        ack => (Some(ack), outcome),
    }
}

fn failed(job: &Claimed, key: Key, error: JobError) -> (Ack, &'static str) {
    let (when, error) = match error {
        JobError::Retry(error) => (backoff(job.attempt), error),
        JobError::RetryAt(time, error) => (When::At(time), error),
        JobError::RetryIn(delay, error) => (When::In(delay), error),
        JobError::Discard(error) => {
            let text = format!("{error:#}");
            tracing::error!(kind = %job.kind, job = key.id, error = %text, "job discarded");
            return (Ack::Final(Final::discarded(key, &text)), "discarded");
        }
    };
    let text = format!("{error:#}");
    if job.attempt >= job.max_attempts {
        tracing::error!(kind = %job.kind, job = key.id, error = %text, "job discarded: no attempts left");
        return (Ack::Final(Final::discarded(key, &text)), "discarded");
    }
    tracing::warn!(error = %text, "attempt failed, will retry");
    (Ack::Back(Back::failed(key, when, &text)), "retried")
}

/// Exponential with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015): a crowd that failed
/// together does not come back together.
fn backoff(attempt: i16) -> When {
    let doubled = RETRY_BASE.saturating_mul(1_u32 << attempt.clamp(0, 20));
    When::In(doubled.min(RETRY_CAP).mul_f64(rand::random::<f64>()))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_to_its_cap_and_is_spread_over_its_whole_range() {
        let upper = |attempt: i16| {
            let delays = (0..2_000).map(|_| match backoff(attempt) {
                When::In(delay) => delay,
                When::At(_) => Duration::ZERO,
            });
            delays.fold((Duration::MAX, Duration::ZERO), |(lo, hi), d| (lo.min(d), hi.max(d)))
        };
        for (attempt, cap) in [(1, 2), (3, 8), (12, 3_600), (200, 3_600)] {
            let (lo, hi) = upper(attempt);
            let cap = Duration::from_secs(cap);
            assert!(hi <= cap && hi > cap.mul_f64(0.95), "{attempt}: {hi:?}");
            assert!(lo < cap.mul_f64(0.05), "{attempt}: {lo:?}");
        }
    }
}
