//! `echo`: says its message back; the job to try things out with.
//!
//! To delete it: this file, its lines in `jobs.rs`, its payload and its line in `job-specs`, and its entry in `USER_JOBS`.
//! Tests of the API's jobs, of shutdown and of the canaries use it: give them a job of your own first.

use std::time::Duration;

use job_specs::Echo;
use jobs::{JobContext, JobError};
use serde::Serialize;

use crate::Context;

/// One step of the sleep, after which progress is shown.
const STEP_MS: u64 = 250;

/// What comes back.
#[derive(Debug, Serialize)]
pub struct Echoed {
    message: String,
    attempt: i16,
}

/// Fails as often as it is told to, works as long as it is told to, and returns the message.
pub async fn run(_: Context, attempt: JobContext, job: Echo) -> Result<Echoed, JobError> {
    if u16::try_from(attempt.attempt()).unwrap_or(u16::MAX) <= job.fail_times {
        let error = anyhow::anyhow!("failing on request ({} of {})", attempt.attempt(), job.fail_times);
        return Err(JobError::Retry(error));
    }
    let mut done = 0;
    while done < job.sleep_ms {
        attempt.progress(done, job.sleep_ms, Some("sleeping")).await;
        let step = STEP_MS.min(job.sleep_ms - done);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(step)) => done += step,
            () = attempt.cancelled().cancelled() => return Err(anyhow::anyhow!("stopped while sleeping").into()),
        }
    }
    if job.sleep_ms > 0 {
        attempt.progress(job.sleep_ms, job.sleep_ms, None).await;
    }
    Ok(Echoed { message: job.message, attempt: attempt.attempt() })
}
