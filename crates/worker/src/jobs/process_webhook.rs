//! `process_webhook`: acts on a webhook that came in.
//!
//! To delete it: this file, its lines in `jobs.rs`, the payload and its line in `job-specs`, and the API's route, which
//! enqueues it. A sender whose events mean something gets an arm in `act`.

use job_specs::ProcessWebhook;
use jobs::{JobContext, JobError};
use serde::{Deserialize, Serialize};

use crate::Context;

/// What was done.
#[derive(Debug, Serialize)]
struct Processed {
    /// The event's type, as its sender calls it.
    r#type: String,
    action: &'static str,
}

/// What events of all senders have.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    r#type: String,
}

/// The effect, the note that it happened, and the job's completion are one transaction: an event acts once, however often
/// it is sent and however often this runs.
pub async fn run(context: Context, attempt: JobContext, job: ProcessWebhook) -> Result<(), JobError> {
    let process = async |c: &mut db::PgConnection| -> Result<(), JobError> {
        let body = db::webhook_events::lock_unprocessed(c, &job.source, &job.event_id).await?;
        let processed = match body {
            Some(body) => act(&job, &body)?,
            None => Processed { r#type: String::new(), action: "none: it was processed before, or deleted" },
        };
        db::webhook_events::mark_processed(c, &job.source, &job.event_id).await?;
        Ok(attempt.complete_in(c, &processed).await?)
    };
    context.database.transaction("webhook_events.process", process).await
}

fn act(job: &ProcessWebhook, body: &[u8]) -> Result<Processed, JobError> {
    // A body that is no JSON will be none the next time.
    let event: Event = serde_json::from_slice(body).map_err(JobError::discard)?;
    tracing::info!(source = job.source, r#type = event.r#type, "an event that nobody acts upon yet");
    Ok(Processed { r#type: event.r#type, action: "none" })
}
