//! To come.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_args: &Args) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not there yet")
}
