//! Subscriptions.

use std::time::Duration;

use jobs::JobSpec;
use serde::{Deserialize, Serialize};

/// Announces renewals of subscriptions and notes which were never heard of. Runs daily, and may be enqueued at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRenewals {}

impl JobSpec for CheckRenewals {
    const NAME: &'static str = "check_renewals";
    const MAX_ATTEMPTS: i16 = 5;
    const TIMEOUT: Duration = Duration::from_secs(300);
}
