//! The one binary: every role and every tool is a command of it.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A request allocates about a hundred times: decision 0110.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Ballast: a production backend in one binary.
///
/// Roles (api, worker, all) run until SIGTERM and then drain. Settings are environment variables: see docs/configuration.md,
/// or run `ballast doctor`.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ballast keygen                      print the secrets of a new deployment
  ballast doctor                      check settings, Postgres, Redis and engine
  ballast migrate up                  bring the database up to this build
  ballast api                         serve the API on PORT
  ballast worker                      run jobs and cron lines
  ballast jobs list                   look at the queue, and steer it

Exit codes: 0 success, 1 failure, 2 wrong usage, 78 wrong configuration.";

#[derive(Subcommand)]
enum Command {
    /// Serve the API
    Api(commands::api::Api),
    /// Run jobs and cron lines
    Worker(commands::worker::Worker),
    /// API and worker in one process, for small deployments
    All(commands::all::All),
    /// Look at the queue and steer it
    Jobs(commands::jobs::Jobs),
    /// Bring the database up to this build, or back
    Migrate(commands::migrate::Migrate),
    /// Make the demo user and API key (development)
    Seed(commands::seed::Seed),
    /// Ask a running role for its health; for containers without a shell
    Healthcheck(commands::healthcheck::Healthcheck),
    /// Check settings and services, and say what to do
    Doctor(commands::doctor::Doctor),
    /// Print fresh secrets for a deployment
    Keygen(commands::keygen::Keygen),
    /// Make accounts and look after them
    User(commands::user::UserCommand),
    /// Look after the keys of stored credentials
    Credentials(commands::credentials::Credentials),
    /// Serve a simulated AI engine, for development and tests
    EngineSim(commands::engine_sim::EngineSim),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Api(command) => command.run(),
        Command::Worker(command) => command.run(),
        Command::All(command) => command.run(),
        Command::Jobs(command) => command.run(),
        Command::Migrate(command) => command.run(),
        Command::Seed(command) => command.run(),
        Command::Healthcheck(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Keygen(command) => command.run(),
        Command::User(command) => command.run(),
        Command::Credentials(command) => command.run(),
        Command::EngineSim(command) => command.run(),
    }
}
