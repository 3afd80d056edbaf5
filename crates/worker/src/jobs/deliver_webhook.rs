//! `deliver_webhook`: sends one event to one endpoint of a user, signed by the specification of Standard Webhooks.
//!
//! To delete it: see "Webhooks" in `docs/removing-parts.md`.

use std::time::Duration;

use db::webhook_deliveries::{self, Pending, Verdict};
use job_specs::DeliverWebhook;
use jobs::{JobContext, JobError};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use webhooks::{Undelivered, standard};

use crate::Context;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
/// How long to wait after each failed attempt, in seconds: the schedule that Standard Webhooks recommends, about three days.
const WAITS: [u64; 9] =
    [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
/// So much of a wait is left to chance, so that what failed together does not come back together.
const SPREAD: f64 = 0.1;
/// The endpoint is gone for good.
const GONE: u16 = 410;

/// What came of it; the log of the endpoint says more.
#[derive(Debug, Serialize)]
struct Outcome {
    outcome: &'static str,
}

/// The receiver may get an event more than once (its answer may be lost), always under the same `webhook-id`. What is given up
/// is no failure of ours, so the job completes all the same, and the endpoint's log tells its owner.
pub async fn run(context: Context, attempt: JobContext, job: DeliverWebhook) -> Result<(), JobError> {
    let find = async |c: &mut db::PgConnection| webhook_deliveries::find_pending(c, job.delivery_id).await;
    let Some(pending) = context.database.call("webhook_deliveries.find_pending", find).await? else {
        return end(&context, &attempt, "none: it was settled before, or its endpoint is gone").await;
    };
    if pending.disabled {
        record(&context, &attempt, &job, None, Some("the endpoint is disabled"), Verdict::Failed).await?;
        return Ok(());
    }
    match send(&context, &job, &pending).await? {
        Ok(status @ 200..=299) => {
            record(&context, &attempt, &job, Some(status), None, Verdict::Delivered).await?;
            Ok(())
        }
        Ok(GONE) => {
            let disable =
                async |c: &mut db::PgConnection| db::webhook_endpoints::disable(c, pending.endpoint_id).await;
            context.database.call("webhook_endpoints.disable", disable).await?;
            record(&context, &attempt, &job, Some(GONE), None, Verdict::Failed).await?;
            Ok(())
        }
        answer => {
            let (status, error) = match &answer {
                Ok(status) => (Some(*status), None),
                Err(error) => (None, Some(error.to_string())),
            };
            let verdict = if attempt.is_last_attempt() { Verdict::Failed } else { Verdict::Again };
            record(&context, &attempt, &job, status, error.as_deref(), verdict).await?;
            if verdict == Verdict::Failed {
                return Ok(());
            }
            let what = error.unwrap_or_else(|| format!("the answer was {}", status.unwrap_or_default()));
            Err(JobError::retry_in(wait(attempt.attempt()), anyhow::anyhow!(what)))
        }
    }
}

/// Signed anew for each attempt: the time of the attempt is part of what is signed.
async fn send(
    context: &Context,
    job: &DeliverWebhook,
    pending: &Pending,
) -> Result<Result<u16, Undelivered>, JobError> {
    let endpoint = (pending.endpoint_id, pending.user_id);
    let secret = context.open_sealed(endpoint.0, endpoint.1, &pending.sealed)?;
    let secret: standard::Secret = secret.expose_secret().parse().map_err(anyhow::Error::msg)?;
    let id = format!("msg_{}", job.delivery_id.simple());
    let now = runtime::Clock::system().now().timestamp();
    let signature = standard::sign(&secret, &id, now, pending.body.as_bytes());
    let headers =
        [(standard::ID, id), (standard::TIMESTAMP, now.to_string()), (standard::SIGNATURE, signature)];
    Ok(context.webhooks.post(&pending.url, headers, pending.body.clone()).await)
}

/// The note in the log, and with the last one the job's completion, in one transaction.
async fn record(
    context: &Context,
    attempt: &JobContext,
    job: &DeliverWebhook,
    status: Option<u16>,
    error: Option<&str>,
    verdict: Verdict,
) -> Result<(), JobError> {
    let outcome = match verdict {
        Verdict::Delivered => "delivered",
        Verdict::Again => "again",
        Verdict::Failed => "failed",
    };
    metrics::counter!("webhook_attempts_total", "outcome" => outcome).increment(1);
    let note = async |c: &mut db::PgConnection| -> Result<(), JobError> {
        webhook_deliveries::record_attempt(c, job.delivery_id, status, error, verdict).await?;
        if verdict != Verdict::Again {
            attempt.complete_in(c, &Outcome { outcome }).await?;
        }
        Ok(())
    };
    context.database.transaction("webhook_deliveries.record_attempt", note).await
}

async fn end(context: &Context, attempt: &JobContext, outcome: &'static str) -> Result<(), JobError> {
    let complete = async |c: &mut db::PgConnection| -> Result<(), JobError> {
        Ok(attempt.complete_in(c, &Outcome { outcome }).await?)
    };
    context.database.transaction("jobs.complete", complete).await
}

fn wait(attempt: i16) -> Duration {
    let at = usize::try_from(attempt - 1).unwrap_or(0).min(WAITS.len() - 1);
    Duration::from_secs(WAITS[at]).mul_f64(1.0 - SPREAD / 2.0 + SPREAD * runtime::backoff::jitter())
}

#[cfg(test)]
mod tests {
    use jobs::JobSpec as _;

    use super::*;

    #[test]
    fn the_waits_are_those_of_the_specification_and_there_is_one_for_each_retry() {
        assert_eq!(WAITS.len() + 1, usize::try_from(DeliverWebhook::MAX_ATTEMPTS).unwrap());
        for (attempt, seconds) in (1..).zip(WAITS) {
            let (wait, exact) = (wait(attempt), Duration::from_secs(seconds));
            assert!(wait >= exact.mul_f64(0.95) && wait <= exact.mul_f64(1.05), "{attempt}: {wait:?}");
        }
        let days: u64 = WAITS.iter().sum::<u64>() / (24 * HOUR);
        assert_eq!(days, 3);
    }
}
