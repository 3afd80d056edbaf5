//! The job queue beside its peer, by the program in `bench/`: a workspace of its own, so that no peer enters ours.

use std::process::ExitCode;

use anyhow::Result;
use devstack::Install;
use devstack::project::Project;

use crate::throwaway::Throwaway;
use crate::ui::Ui;
use crate::{cargo, interrupts};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For the program in bench/: `-- --help` lists them
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let project = Project::find()?;
    let bench = project.root().join("bench");
    ui.step("building bench/ (several minutes the first time)");
    // Without `--locked`: its lockfile lists our crates' dependencies too, and those change.
    cargo::run_ok(cargo::cargo(&project).current_dir(&bench).args(["build", "--release"]))?;
    // The figures mean nothing on a server that does not wait for the disk.
    let throwaway = Throwaway::durable(&project, Install::Ask, &ui)?;
    let database_url = throwaway.services.postgres.url.as_str();
    let mut command = cargo::cargo(&project);
    command.current_dir(&bench).args(["run", "--quiet", "--release", "--"]).args(&args.arguments);
    cargo::run_ok(command.env("DATABASE_URL", database_url))?;
    Ok(ExitCode::SUCCESS)
}
