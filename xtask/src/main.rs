//! The developer commands: `cargo stack`, `cargo verify` and `cargo xtask ...` (aliases in `.cargo/config.toml`).
//!
//! They need Rust and nothing else: what else is missing they install, or they say what to do. Exit codes: 0 done,
//! 1 something failed, 2 this machine or its user has to decide something first (the text says what), 130 interrupted.
#![expect(
    clippy::disallowed_methods,
    reason = "a developer tool, no part of the served program: it reads the variables that it documents, and no test moves its clock"
)]

mod abuse;
mod bench;
mod cargo;
mod database;
mod fuzz;
mod http;
mod image;
mod interrupts;
mod machine;
mod prepare;
mod removal;
mod rename;
mod smoke;
mod soak;
mod stack;
mod throwaway;
mod ui;
mod upgrade;
mod verify;

use std::error::Error;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use devstack::Unavailable;

use crate::interrupts::Interrupted;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Developer commands of this project")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole stack on this machine: Postgres, Redis, engine, API, worker (also: cargo stack)
    Stack(stack::Args),
    /// Check everything: formatting, lints, tests, generated files (also: cargo verify)
    Verify(verify::Args),
    /// Regenerate the descriptions of SQL queries in .sqlx
    Prepare(prepare::Args),
    /// Hand the development database to somebody else, or take theirs
    Database(database::Args),
    /// Measure, beside a yardstick in the same run
    Bench(bench::Args),
    /// Run the cases of abuse that are too long for every change
    Abuse(abuse::Args),
    /// Feed parsers with what a fuzzer makes up
    Fuzz(fuzz::Args),
    /// Run everything for hours while something breaks every 20 seconds
    Soak(soak::Args),
    /// Run the release before and this one side by side on one database
    Upgrade(upgrade::Args),
    /// Build the container image and try the compose stack
    Image(image::Args),
    /// Remove each optional part in a copy of the tree, as docs/removing-parts.md says, and build what is left
    Removal(removal::Args),
    /// Give the project another name: crate, program, images, documents
    Rename(rename::Args),
}

fn main() -> ExitCode {
    let outcome = run(&Cli::parse().command);
    outcome.unwrap_or_else(|error| {
        ui::error(&format!("{error:#}"));
        if error.chain().any(<dyn Error>::is::<Interrupted>) {
            ExitCode::from(130)
        } else if error.chain().any(<dyn Error>::is::<Unavailable>) {
            ExitCode::from(2)
        } else {
            ExitCode::FAILURE
        }
    })
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Stack(args) => stack::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Prepare(args) => prepare::run(args),
        Command::Database(args) => database::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Abuse(args) => abuse::run(args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::Soak(args) => soak::run(args),
        Command::Upgrade(args) => upgrade::run(args),
        Command::Image(args) => image::run(args),
        Command::Removal(args) => removal::run(args),
        Command::Rename(args) => rename::run(args),
    }
}
