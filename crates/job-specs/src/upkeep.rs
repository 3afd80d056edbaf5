//! What keeps the stack tidy.

use std::time::Duration;

use jobs::{JobSpec, Priority};
use serde::{Deserialize, Serialize};

/// Logs that the schedule works.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {}

impl JobSpec for Heartbeat {
    const NAME: &'static str = "heartbeat";
    const PRIORITY: Priority = Priority::Low;
    const MAX_ATTEMPTS: i16 = 1;
    const TIMEOUT: Duration = Duration::from_secs(10);
}

/// Deletes what has expired: sessions, tokens, keys of unique jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {}

impl JobSpec for Cleanup {
    const NAME: &'static str = "cleanup";
    const PRIORITY: Priority = Priority::Low;
    const MAX_ATTEMPTS: i16 = 5;
    const TIMEOUT: Duration = Duration::from_secs(600);
}

/// Makes the coming days' partitions of finished jobs and drops the old ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepPartitions {}

impl JobSpec for KeepPartitions {
    const NAME: &'static str = "keep_partitions";
    const PRIORITY: Priority = Priority::High;
    const TIMEOUT: Duration = Duration::from_secs(120);
}
