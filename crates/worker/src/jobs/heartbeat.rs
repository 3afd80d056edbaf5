//! `heartbeat`: logs each minute that schedule, queue and worker work together.
//!
//! To delete it: see "Heartbeat" in `docs/removing-parts.md`.

use job_specs::Heartbeat;
use jobs::{JobContext, JobError};

use crate::Context;

/// Logs.
pub async fn run(_: Context, _: JobContext, _: Heartbeat) -> Result<(), JobError> {
    tracing::info!("heartbeat");
    Ok(())
}
