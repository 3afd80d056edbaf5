//! `cargo xtask bench`: figures beside their yardstick, in one run, on services of their own.

mod api;
mod cache;
mod jobs;
mod load;
mod nginx;
mod proxy;
mod relay;
mod stand;
mod streams;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench api                    CPU per request, beside nginx
  cargo xtask bench api --requests 200000 --connections 10
  cargo xtask bench proxy                  streams through the API, beside nginx and the engine itself
  cargo xtask bench proxy --idle 9000 --only idle
  cargo xtask bench cache                  an answer of the cache, beside one of the engine
  cargo xtask bench relay                  an event stream's chunk: processor time and allocations
  cargo xtask bench jobs                   the queue beside graphile_worker
  cargo xtask bench jobs -- --parts drain --jobs 20000 --repetitions 5";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// CPU per request of the API without and with authentication, limits and log, beside nginx with a fixed answer
    Api(api::Args),
    /// Event streams through the API, beside nginx without buffering and a direct connection: time to the first token, memory of
    /// idle streams, CPU per event, events per second
    Proxy(proxy::Args),
    /// Time of a whole answer from the cache, beside the engine's
    Cache(cache::Args),
    /// Processor time and allocations per chunk of the relay of event streams; fails when a chunk costs an allocation
    Relay,
    /// The job queue beside graphile_worker: draining, pick-up, a large backlog, enqueueing, idling
    Jobs(jobs::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Api(args) => api::run(args),
        What::Proxy(args) => proxy::run(args),
        What::Cache(args) => cache::run(args),
        What::Relay => relay::run(),
        What::Jobs(args) => jobs::run(args),
    }
}
