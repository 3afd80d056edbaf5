//! `cargo xtask abuse`: the cases that take too long for every change, in full, on throw-away servers.
//!
//! They are ordinary tests, in the modules `abuse` and `faults` of the full-stack tests and of the queue's, and a few others. With all others
//! they run small and with generous bounds; here each runs alone, in its full size, and its figures are shown and count.

use std::process::ExitCode;

use anyhow::Result;
use devstack::Install;
use devstack::project::Project;

use crate::throwaway::Throwaway;
use crate::ui::Ui;
use crate::{cargo, interrupts};

const MODULES: [&str; 2] = ["abuse::", "faults::"];
/// And these, of modules whose other tests have nothing to gain.
const CASES: [&str; 3] = [
    "releases::a_termination_under_load",
    "shutdown::a_second_signal_ends_it_within_a_second",
    "processes::a_process_killed_in_the_middle_of_a_job",
];

const EXAMPLES: &str = "\
Examples:
  cargo xtask abuse                 all of them, one after the other; about half an hour
  cargo xtask abuse login_timing    those whose name begins so
  cargo xtask abuse redis           Redis killed, paused, and full of errors, under load
  cargo xtask abuse --list          name them

For nights and before a release, on a machine that does nothing else: the bounds are exact here. Everything stays on the
loopback interface.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask abuse [OPTIONS] [NAME]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only cases whose name begins with this; --list names them
    name: Option<String>,
    /// Name the cases, run nothing
    #[arg(long)]
    list: bool,
    /// Install missing servers without asking
    #[arg(short, long)]
    yes: bool,
    /// Never install anything
    #[arg(long, conflicts_with = "yes")]
    no_install: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let project = Project::find()?;
    let name = args.name.as_deref().unwrap_or_default();
    let named = MODULES.iter().any(|module| name.starts_with(module));
    let filters = if named {
        vec![name.to_owned()]
    } else {
        let modules = MODULES.map(|module| format!("{module}{name}"));
        let cases = CASES.iter().filter(|case| {
            case.starts_with(name) || case.split_once("::").is_some_and(|(_, case)| case.starts_with(name))
        });
        modules.into_iter().chain(cases.map(|case| (*case).to_owned())).collect()
    };
    // Not nextest, which ends what takes long.
    let tests = |package: &str, test: &str| {
        let mut tests = cargo::cargo(&project);
        tests.args(["test", "--package", package, "--test", test, "--"]).args(&filters);
        tests
    };
    let suites = || [tests("ballast", "it"), tests("jobs", "queue")];
    if args.list {
        for mut tests in suites() {
            cargo::run_ok(tests.arg("--list"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let install = match (args.yes, args.no_install) {
        (_, true) => Install::Never,
        (true, false) => Install::Yes,
        (false, false) => Install::Ask,
    };
    let throwaway = Throwaway::start(&project, install, &ui)?;
    let services = &throwaway.services;
    for mut tests in suites() {
        tests
            .args(["--nocapture", "--test-threads=1"])
            .env("ABUSE_IN_FULL", "1")
            .env("TEST_DATABASE_URL", &services.postgres.url)
            .env("TEST_REDIS_URL", &services.redis.url);
        cargo::run_ok(&mut tests)?;
    }
    ui.step("every case passed");
    Ok(ExitCode::SUCCESS)
}
