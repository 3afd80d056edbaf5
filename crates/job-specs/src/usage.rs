//! Usage of the AI engine.

use std::time::Duration;

use jobs::{JobSpec, Unique};
use serde::{Deserialize, Serialize};

/// Adds usage events up to hours. Runs hourly, and may be enqueued at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRollup {}

impl JobSpec for UsageRollup {
    const NAME: &'static str = "usage_rollup";
    const TIMEOUT: Duration = Duration::from_secs(300);

    fn unique(&self) -> Option<Unique> {
        Some(Unique::by_kind())
    }
}
