//! To come.
use crate::ui::Ui;
use crate::verify::Outcome;
use devstack::project::Project;
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_args: &Args) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not there yet")
}
pub(crate) fn step(_project: &Project, _ui: &Ui) -> anyhow::Result<Outcome> {
    Ok(Outcome::Skipped("not there yet".to_owned()))
}
