//! Starting the worker, and watching it from outside.

use std::time::Duration;

use ::jobs::{EnqueueOptions, JobSpec as _, Settings, Unique, Worker, WorkerHandle};
use anyhow::Context as _;
use health::{Kind, Registry};
use job_specs::KeepPartitions;
use runtime::{Lifecycle, Phase, backoff::Backoff};

use crate::{Context, jobs, schedule};

/// A claim older than this means that the worker does not work: it looks every second.
const CLAIM_AGE: Duration = Duration::from_secs(30);
/// The schedule is looked at every 30 s at least.
const TICK_AGE: Duration = Duration::from_secs(90);

/// How old the numbers of users and sessions may be.
const COUNT_EVERY: Duration = Duration::from_secs(60);

/// A running worker.
#[derive(Debug, Clone)]
pub struct Handle {
    worker: WorkerHandle,
}

/// Starts everything the worker role does in the background: jobs, schedule, upkeep. The database may be away; the worker
/// waits for it. It ends with the lifecycle.
pub async fn start(context: Context, lifecycle: &Lifecycle) -> anyhow::Result<Handle> {
    if context.mailer.drops_mail() {
        tracing::warn!("no mail provider is configured and mails are dropped: set RESEND_API_KEY");
    }
    let lines = schedule::lines().context("the schedule is wrong")?;
    let worker = worker(&context).schedule(lines.clone());
    let handle = worker.start(lifecycle);
    schedule::wake(&lines, handle.clone(), lifecycle).await;
    lifecycle.spawn_task(make_partitions(context.clone(), lifecycle.clone()));
    lifecycle.spawn_task(context.engines.clone().tend(lifecycle.clone()));
    lifecycle.spawn_task(count_users(context, lifecycle.clone()));
    Ok(Handle { worker: handle })
}

/// The worker with all jobs and without a schedule; tests run jobs with it.
pub fn worker(context: &Context) -> Worker {
    let queue = &context.config.queue;
    let settings = Settings {
        name: context.config.runtime.telemetry.replica.clone().unwrap_or_else(|| "worker".to_owned()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        concurrency: queue.concurrency,
        poll_interval: queue.poll_interval,
        lease: queue.lease,
        ..Settings::default()
    };
    let database = &context.database;
    let worker = Worker::new(database.pool().clone(), database.direct_options().clone(), settings);
    // Runs wait for their engine nearly all the time: they have slots of their own.
    let worker = worker.queue(job_specs::Run::QUEUE, context.config.run_concurrency);
    jobs::register(worker, context)
}

impl Handle {
    /// How long ago a queue was last looked at with success; `None` before the first time.
    pub fn last_claim_age(&self) -> Option<Duration> {
        self.worker.last_claim_age()
    }

    /// How long ago the schedule was last looked at with success; `None` before the first time.
    pub fn last_tick_age(&self) -> Option<Duration> {
        self.worker.last_tick_age()
    }

    /// Adds the checks `queue` and `schedule`: is anything claimed, is anything scheduled?
    pub fn register_checks(&self, registry: &Registry) {
        let handle = self.clone();
        registry.register("queue", Kind::Required, Duration::from_secs(1), move || {
            let age = handle.last_claim_age();
            async move { fresh(age, CLAIM_AGE) }
        });
        let handle = self.clone();
        registry.register("schedule", Kind::Required, Duration::from_secs(1), move || {
            let age = handle.last_tick_age();
            async move { fresh(age, TICK_AGE) }
        });
    }

    /// The ages as metrics; call before each scrape.
    pub fn record_metrics(&self) {
        for (name, age) in [
            ("worker_last_claim_age_seconds", self.last_claim_age()),
            ("worker_last_tick_age_seconds", self.last_tick_age()),
        ] {
            metrics::gauge!(name).set(age.map_or(f64::NAN, |age| age.as_secs_f64()));
        }
        metrics::gauge!("worker_jobs_held").set(self.worker.held_jobs() as f64);
    }
}

fn fresh(age: Option<Duration>, limit: Duration) -> Result<(), String> {
    match age {
        Some(age) if age <= limit => Ok(()),
        Some(age) => Err(format!("last success {} s ago", age.as_secs())),
        None => Err("not yet".to_owned()),
    }
}

/// The daily line makes the partitions; a new database should not have to wait for it.
async fn make_partitions(context: Context, lifecycle: Lifecycle) {
    let options = EnqueueOptions {
        unique: Some(Unique::by_key("start").for_period(Duration::from_secs(3_600))),
        ..EnqueueOptions::default()
    };
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    while lifecycle.phase() < Phase::Draining {
        let enqueued = context
            .database
            .call("jobs.enqueue", async |c| -> anyhow::Result<_> {
                Ok(::jobs::enqueue(c, &KeepPartitions {}, options.clone()).await?)
            })
            .await;
        match enqueued {
            Ok(_) => return,
            Err(error) => tracing::debug!(error = %format_args!("{error:#}"), "partitions are made later"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = lifecycle.reached(Phase::Draining) => return,
        }
    }
}

/// Counts users and sessions for the metrics, beside every scrape. Every worker shows the same numbers: take their maximum.
async fn count_users(context: Context, lifecycle: Lifecycle) {
    while lifecycle.phase() < Phase::Draining {
        let counted = context.database.call("users.count", async |c| db::users::count(c).await).await;
        match counted {
            Ok(counts) => {
                metrics::gauge!("users", "state" => "enabled").set(counts.enabled as f64);
                metrics::gauge!("users", "state" => "disabled").set(counts.disabled as f64);
                metrics::gauge!("sessions_active").set(counts.active_sessions as f64);
                metrics::gauge!("users_active").set(counts.active_users as f64);
            }
            Err(error) => tracing::debug!(%error, "users were not counted"),
        }
        tokio::select! {
            () = tokio::time::sleep(COUNT_EVERY) => {}
            () = lifecycle.reached(Phase::Draining) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_ready_from_its_first_success_until_the_last_one_is_too_long_ago() {
        let second = Duration::from_secs(1);
        for limit in [CLAIM_AGE, TICK_AGE] {
            assert_eq!(fresh(None, limit), Err("not yet".to_owned()));
            assert_eq!(fresh(Some(Duration::ZERO), limit), Ok(()));
            assert_eq!(fresh(Some(limit), limit), Ok(()));
            let late = format!("last success {} s ago", (limit + second).as_secs());
            assert_eq!(fresh(Some(limit + second), limit), Err(late));
        }
    }
}
