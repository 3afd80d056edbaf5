//! The commands, one file each.

pub(crate) mod all;
pub(crate) mod api;
pub(crate) mod credentials;
pub(crate) mod doctor;
pub(crate) mod engine_sim;
pub(crate) mod healthcheck;
pub(crate) mod jobs;
pub(crate) mod keygen;
pub(crate) mod migrate;
pub(crate) mod seed;
pub(crate) mod user;
pub(crate) mod worker;

mod role;

use std::{fmt::Display, process::ExitCode};

/// Prints a wrong configuration and gives its exit code.
#[expect(clippy::print_stderr, reason = "there is no log before there is a configuration")]
fn refuse_configuration(problems: &config::Problems) -> ExitCode {
    eprintln!("{problems}");
    ExitCode::from(runtime::EXIT_CONFIG)
}

/// Runs a short command and prints its error.
#[expect(clippy::print_stderr, reason = "this is a command's answer to a person")]
fn tool<E: Display>(work: impl AsyncFnOnce() -> Result<ExitCode, E>) -> ExitCode {
    runtime::install_crypto_provider();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line to standard output; a closed pipe (`ballast ... | head`) is nobody's fault.
fn say(line: impl Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}
