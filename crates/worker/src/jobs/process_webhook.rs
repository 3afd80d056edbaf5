//! `process_webhook`: acts on a webhook that came in.
//!
//! To delete it: see "Webhooks" in `docs/removing-parts.md`. A sender whose events mean something gets an arm in `act`.

use job_specs::ProcessWebhook;
use jobs::{JobContext, JobError};
use serde::{Deserialize, Serialize};

use crate::{Context, subscriptions};

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Processed {
    /// The event's type, as its sender calls it.
    r#type: Option<String>,
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
            Some(body) => act(c, &job, &body).await?,
            None => Processed { action: "none: it was processed before, or deleted", ..Processed::default() },
        };
        let event_type = processed.r#type.as_deref();
        db::webhook_events::mark_processed(c, &job.source, &job.event_id, event_type).await?;
        Ok(attempt.complete_in(c, &processed).await?)
    };
    context.database.transaction("webhook_events.process", process).await
}

async fn act(c: &mut db::PgConnection, job: &ProcessWebhook, body: &[u8]) -> Result<Processed, JobError> {
    // A body that is no JSON will be none the next time.
    serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(JobError::discard)?;
    let r#type = event_type(body);
    let action = match job.source.as_str() {
        "stripe" => subscriptions::hear(c, body).await?,
        _ => "none",
    };
    tracing::info!(source = job.source, r#type, action, "an event came in");
    Ok(Processed { r#type, action })
}

/// The type that an event says it is of, if it says so and the database can hold it.
pub(crate) fn event_type(body: &[u8]) -> Option<String> {
    let Event { r#type } = serde_json::from_slice(body).ok()?;
    let fine = (1..=255).contains(&r#type.len()) && !r#type.chars().any(char::is_control);
    fine.then_some(r#type)
}
