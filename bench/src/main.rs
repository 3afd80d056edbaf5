//! The job queue beside its peer, on one Postgres, in one run, in turn: what the machine does meanwhile hits both.

mod ours;
mod peer;
mod report;
mod server;

use std::{ops::Range, time::Duration};

use anyhow::Result;
use clap::Parser;

use crate::{report::Report, server::Server};

/// The job queue beside graphile_worker. `DATABASE_URL` names a Postgres on which databases can be made.
#[derive(Debug, Parser)]
struct Args {
    /// Address of a Postgres server
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Repetitions; the medians are printed
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Backlogs to drain
    #[arg(long, value_delimiter = ',', default_value = "20000,100000")]
    jobs: Vec<usize>,
    /// Jobs at a time
    #[arg(long, value_delimiter = ',', default_value = "10,50")]
    concurrency: Vec<usize>,
    /// Connections that enqueue at a time
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    producers: Vec<usize>,
    /// Jobs for the pick-up latency
    #[arg(long, default_value_t = 500)]
    samples: usize,
    /// The backlog that must not slow the claim down
    #[arg(long, default_value_t = 1_000_000)]
    backlog: usize,
    /// Seconds of idling
    #[arg(long, default_value_t = 10)]
    idle_seconds: u64,
    /// Parts to run: drain, latency, backlog, enqueue, idle
    #[arg(long, value_delimiter = ',', default_value = "drain,latency,backlog,enqueue,idle")]
    parts: Vec<String>,
    /// Without the peer
    #[arg(long)]
    alone: bool,
}

/// So many jobs, divided among so many.
fn shares(jobs: usize, among: usize) -> impl Iterator<Item = Range<usize>> {
    (0..among).map(move |n| jobs * n / among..jobs * (n + 1) / among)
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let server = Server::new(&args.database_url).await?;
    let mut report = Report::default();
    let has = |part: &str| args.parts.iter().any(|p| p == part);
    for repetition in 0..args.repetitions {
        eprintln!("repetition {} of {}", repetition + 1, args.repetitions);
        // The order changes each time, so that neither is always the one that finds warm caches.
        let ours_first = repetition % 2 == 0;
        if has("drain") {
            for &jobs in &args.jobs {
                for &concurrency in &args.concurrency {
                    let what = format!("drain {jobs} jobs, concurrency {concurrency}, jobs/s");
                    for ours in [ours_first, !ours_first] {
                        if ours {
                            report.ours(&what, ours::drain(&server, jobs, concurrency).await?);
                        } else if !args.alone {
                            report.peer(&what, peer::drain(&server, jobs, concurrency).await?);
                        }
                    }
                }
            }
        }
        if has("latency") {
            for ours in [ours_first, !ours_first] {
                if ours {
                    report.latency(true, ours::latency(&server, args.samples).await?);
                } else if !args.alone {
                    report.latency(false, peer::latency(&server, args.samples).await?);
                }
            }
        }
        if has("enqueue") {
            for &connections in &args.producers {
                let what = format!("enqueue 100000 in batches of 1000, {connections} at a time, jobs/s");
                report.ours(&what, ours::enqueue(&server, 100_000, connections).await?);
                if !args.alone {
                    report.peer(&what, peer::enqueue(&server, 100_000, connections).await?);
                }
            }
        }
        if has("backlog") {
            let few = args.backlog / 10;
            for backlog in [few, args.backlog] {
                let what = format!("first {} of a backlog of {backlog}, jobs/s", few / 2);
                report.ours(&what, ours::head_of_backlog(&server, backlog, few / 2).await?);
            }
        }
    }
    if has("idle") {
        report.idle(ours::idle(&server, Duration::from_secs(args.idle_seconds)).await?);
    }
    report.print();
    Ok(())
}
