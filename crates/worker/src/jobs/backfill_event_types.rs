//! `backfill_event_types`: fills in the type of webhooks that came in before their type was stored. The backfill to copy.
//!
//! To delete it: see "The backfill" in `docs/removing-parts.md`.

use db::webhook_events;
use job_specs::BackfillEventTypes;
use jobs::{JobContext, JobError};

use crate::{
    Context,
    backfill::{self, Batch},
    jobs::process_webhook::event_type,
};

/// A body may have 256 KiB.
const BATCH: i64 = 100;

/// The cursor is the primary key of the last event. New events get their type when they are processed.
pub async fn run(context: Context, attempt: JobContext, job: BackfillEventTypes) -> Result<(), JobError> {
    backfill::run(&context, &attempt, "webhook_event", job.again, async |c, cursor| {
        let cursor: Option<(String, String)> = cursor.map(serde_json::from_value).transpose()?;
        let (source, id) = cursor.unwrap_or_default();
        let events = webhook_events::without_type(c, (&source, &id), BATCH).await?;
        let Some(last) = events.last() else { return Ok(None) };
        let cursor = serde_json::json!([last.source, last.event_id]);
        let (mut sources, mut ids, mut types) = (Vec::new(), Vec::new(), Vec::new());
        for event in &events {
            // What has no type keeps none, and is behind the cursor all the same.
            if let Some(found) = event_type(&event.body) {
                sources.push(event.source.clone());
                ids.push(event.event_id.clone());
                types.push(found);
            }
        }
        webhook_events::set_types(c, &sources, &ids, &types).await?;
        Ok(Some(Batch { cursor, rows: i64::try_from(events.len()).unwrap_or(BATCH) }))
    })
    .await
}
