//! What the relay of event streams costs per chunk, by the program in `bench/relay`: a workspace of its own, because its counting
//! allocator needs unsafe code.

use std::process::ExitCode;

use anyhow::Result;
use devstack::project::Project;

use crate::ui::Ui;
use crate::{cargo, interrupts};

pub(crate) fn run() -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let project = Project::find()?;
    ui.step("building bench/relay");
    let mut command = cargo::cargo(&project);
    command.current_dir(project.root().join("bench").join("relay")).args(["run", "--quiet", "--release"]);
    cargo::run_ok(&mut command)?;
    Ok(ExitCode::SUCCESS)
}
