//! A worker for the tests, as a process of its own that they can kill and pause: `test_worker URL LEASE_MS NAME [CRON]`.
//!
//! Its one kind of job does what the payload says. What happened is told by tables, because they outlive the process:
//! `began` has a row for each attempt, `effect` one for each effect, `refused` one for each that came too late.

use std::{str::FromStr as _, time::Duration};

use anyhow::Context as _;
use jobs::{CatchUp, CronLine, Error, JobContext, JobError, JobSpec, Settings, Worker};
use runtime::{Clock, Lifecycle, ShutdownConfig};
use serde::{Deserialize, Serialize};
use sqlx::{
    PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

#[derive(Debug, Serialize, Deserialize)]
struct Deed {
    what: What,
    #[serde(default)]
    ms: u64,
    /// Of a cron line.
    #[serde(default)]
    tick: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// The effect, after so many milliseconds, in the transaction that completes the job.
    Work,
    /// The same without an `.await` for so long: nothing stops it, so it comes back as a zombie.
    WorkDeaf,
    /// The effect, with the job's id as idempotency key, and then nothing until the process is killed.
    EffectThenHang,
    /// The effect in the transaction that completes the job, and then nothing until the process is killed.
    CompleteThenHang,
    /// The effect in the transaction that completes the job, which stays open until the process is killed.
    HangBeforeCommit,
    /// Ends the process.
    Abort,
}

impl JobSpec for Deed {
    const NAME: &'static str = "deed";
    const TIMEOUT: Duration = Duration::from_secs(300);
    /// Killed and paused all the time.
    const MAX_ATTEMPTS: i16 = 1_000;
}

async fn run(ctx: JobContext, deed: Deed) -> Result<(), JobError> {
    if deed.what == What::WorkDeaf {
        // In one turn from the first row on: nothing can drop it at a point where it waits.
        let runtime = tokio::runtime::Handle::current();
        return tokio::task::block_in_place(|| runtime.block_on(act(&ctx, deed)));
    }
    act(&ctx, deed).await
}

async fn act(ctx: &JobContext, deed: Deed) -> Result<(), JobError> {
    sqlx::query("insert into began (job, attempt, pid, clock) values ($1, $2, $3, $4)")
        .bind(ctx.id())
        .bind(ctx.attempt())
        .bind(std::process::id().cast_signed())
        .bind(Clock::system().now())
        .execute(ctx.pool())
        .await?;
    let first = ctx.attempt() == 1;
    match deed.what {
        What::Work | What::WorkDeaf => tokio::time::sleep(Duration::from_millis(deed.ms)).await,
        What::EffectThenHang => {
            sqlx::query("insert into effect select $1 where not exists (select from effect where job = $1)")
                .bind(ctx.id())
                .execute(ctx.pool())
                .await?;
            if first {
                std::future::pending::<()>().await;
            }
            return Ok(());
        }
        What::CompleteThenHang => {
            complete(ctx).await?;
            std::future::pending::<()>().await;
        }
        What::HangBeforeCommit if first => {
            ctx.transaction(async |tx| {
                effect(ctx, tx).await?;
                std::future::pending::<Result<(), Error>>().await
            })
            .await?;
        }
        What::HangBeforeCommit => {}
        What::Abort => std::process::abort(),
    }
    complete(ctx).await
}

/// The effect and the completion, together.
async fn complete(ctx: &JobContext) -> Result<(), JobError> {
    let done = ctx.transaction(async |tx| effect(ctx, tx).await).await;
    if let Err(Error::LeaseLost) = done {
        sqlx::query("insert into refused values ($1)").bind(ctx.id()).execute(ctx.pool()).await?;
    }
    Ok(done?)
}

async fn effect(ctx: &JobContext, tx: &mut PgConnection) -> Result<(), Error> {
    sqlx::query("insert into effect values ($1)").bind(ctx.id()).execute(&mut *tx).await?;
    ctx.complete_in(tx, &()).await
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, lease_ms, name, cron @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: test_worker URL LEASE_MS NAME [CRON]");
    };
    let options = PgConnectOptions::from_str(url).context("URL")?;
    let pool = PgPoolOptions::new().max_connections(6).connect_lazy_with(options.clone());
    let settings = Settings {
        name: name.clone(),
        lease: Duration::from_millis(lease_ms.parse().context("LEASE_MS")?),
        poll_interval: Duration::from_millis(200),
        concurrency: 4,
        ..Settings::default()
    };
    let mut lines = Vec::new();
    for expression in cron {
        // A line that cannot be made, for a worker that goes down with its schedule.
        let (expression, panics) =
            expression.strip_prefix("panic ").map_or((expression.as_str(), false), |rest| (rest, true));
        let deed = move |tick| {
            assert!(!panics, "a cron line panics");
            Deed { what: What::Work, ms: 20, tick: Some(tick) }
        };
        lines.push(CronLine::new("line", expression, chrono_tz::Tz::UTC, CatchUp::All, deed)?);
    }
    let life = Lifecycle::new(ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(5) });
    Worker::new(pool, options, settings).register::<Deed, _, _, _>(run).schedule(lines).start(&life);
    // It never stops by itself: that a worker does is tested with the real one.
    life.run_until_stopped().await;
    anyhow::bail!("a task of the worker has ended: {:?}", life.failed_task())
}
