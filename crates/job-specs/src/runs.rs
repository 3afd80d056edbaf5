//! Resumable runs.

use std::time::Duration;

use jobs::{JobSpec, Priority};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Makes a resumable run. The request is in the run's row: it may be larger than a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Which run.
    pub run_id: Uuid,
}

impl JobSpec for Run {
    const NAME: &'static str = "run";
    const QUEUE: &'static str = "runs";
    const PRIORITY: Priority = Priority::High;
    // Only for workers that die: what the engine does wrong ends the run, because its reader waits.
    const MAX_ATTEMPTS: i16 = 3;
    // Whoever enqueues one says how long it may take: the configuration decides.
    const TIMEOUT: Duration = Duration::from_secs(3_600);
}
