//! What runs when: the one table of cron lines.
//!
//! Times are in each line's own time zone. Every worker has all lines; the database lets exactly one of them enqueue the
//! job of a tick (see the `jobs` crate). `tokio-cron-scheduler` only wakes us: it goes by the local clock, skips ticks
//! that it missed, and knows nothing of other workers, so it decides nothing.

use chrono_tz::Tz;
use jobs::{CatchUp, CronLine, Error, WorkerHandle};
use runtime::{Lifecycle, Phase};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

/// All lines. The name is what ticks are stored under: keep it when the rest changes.
#[rustfmt::skip]
pub fn lines() -> Result<Vec<CronLine>, Error> {
    Ok(vec![
        //             name               minute hour day month weekday   zone     after an outage  job
        CronLine::new("heartbeat",       "* * * * *",                    Tz::UTC, CatchUp::Skip,   |_| job_specs::Heartbeat {})?,
        CronLine::new("usage_rollup",    "5 * * * *",                    Tz::UTC, CatchUp::One,    |_| job_specs::UsageRollup {})?,
        CronLine::new("keep_partitions", "10 0 * * *",                   Tz::UTC, CatchUp::One,    |_| job_specs::KeepPartitions {})?,
        CronLine::new("check_renewals",  "0 7 * * *",                    Tz::UTC, CatchUp::One,    |_| job_specs::CheckRenewals {})?,
        CronLine::new("cleanup",         "30 3 * * *",                   Tz::UTC, CatchUp::One,    |_| job_specs::Cleanup {})?,
    ])
}

/// Lets `tokio-cron-scheduler` wake the schedule at each tick. Without it the schedule's own timer does, so a failure is
/// only logged.
pub(crate) async fn wake(lines: &[CronLine], worker: WorkerHandle, lifecycle: &Lifecycle) {
    match start(lines, &worker).await {
        Ok(mut scheduler) => {
            let life = lifecycle.clone();
            lifecycle.spawn_task(async move {
                life.reached(Phase::Closing).await;
                let _ = scheduler.shutdown().await;
            });
        }
        Err(error) => {
            tracing::warn!(%error, "tokio-cron-scheduler does not start; our own timer wakes the schedule");
        }
    }
}

async fn start(lines: &[CronLine], worker: &WorkerHandle) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    for line in lines {
        // It wants the seconds.
        let fields = line.expression().split_whitespace().count();
        let expression =
            if fields == 5 { format!("0 {}", line.expression()) } else { line.expression().to_owned() };
        let worker = worker.clone();
        let woken = Job::new_async_tz(expression, line.timezone(), move |_, _| {
            worker.wake_schedule();
            Box::pin(async {})
        })?;
        scheduler.add(woken).await?;
    }
    scheduler.start().await?;
    Ok(scheduler)
}
