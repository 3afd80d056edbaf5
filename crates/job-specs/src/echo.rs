//! The job to try things out with.

use std::time::Duration;

use jobs::JobSpec;
use serde::{Deserialize, Serialize};

/// Says its message back: the job to try things out with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Echo {
    /// Comes back in the result; at most 10 000 bytes.
    pub message: String,
    /// Works so long, in milliseconds, showing its progress; at most a minute.
    #[serde(default)]
    pub sleep_ms: u64,
    /// Fails so often before it succeeds; at most 5.
    #[serde(default)]
    pub fail_times: u16,
}

impl Echo {
    /// Says what is wrong with a payload that came from outside.
    pub(crate) fn check(&self) -> Result<(), String> {
        match () {
            () if self.message.len() > 10_000 => Err("message: at most 10000 bytes".to_owned()),
            () if self.sleep_ms > 60_000 => Err("sleep_ms: at most 60000".to_owned()),
            () if self.fail_times > 5 => Err("fail_times: at most 5".to_owned()),
            () => Ok(()),
        }
    }
}

impl JobSpec for Echo {
    const NAME: &'static str = "echo";
    const TIMEOUT: Duration = Duration::from_secs(90);
}
