//! One-off changes of data.

use std::time::Duration;

use jobs::{JobSpec, Unique};
use serde::{Deserialize, Serialize};

/// Fills in the type of webhooks that came in before their type was stored; an operator enqueues it. Goes on where it was
/// stopped, and does nothing when it is through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillEventTypes {
    /// Begins anew.
    #[serde(default)]
    pub again: bool,
}

impl JobSpec for BackfillEventTypes {
    const NAME: &'static str = "backfill_event_types";
    // Of its own: it may take long, and nothing should wait behind it.
    const QUEUE: &'static str = "backfills";
    const MAX_ATTEMPTS: i16 = 25;
    const TIMEOUT: Duration = Duration::from_secs(24 * 3_600);

    fn unique(&self) -> Option<Unique> {
        Some(Unique::by_kind())
    }
}
