//! Third-party clients against a stack of their own: every `examples/*.py` runs in a virtual environment with what
//! `examples/requirements.txt` names, finds the addresses in the variables that `cargo stack --env` prints, and says
//! with its exit code whether it worked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use devstack::Unavailable;

use super::own_stack::OwnStack;
use super::{Bench, Outcome};
use crate::cargo;

pub(super) fn run(bench: &mut Bench) -> Result<Outcome> {
    let examples = bench.project.root().join("examples");
    let mut scripts: Vec<PathBuf> = fs::read_dir(&examples)
        .context("cannot read examples/")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
        .collect();
    scripts.sort();
    if scripts.is_empty() {
        return Ok(Outcome::Skipped("there is no examples/*.py".to_owned()));
    }
    let python = virtual_environment(bench, &examples)?;
    let stack = OwnStack::start(bench)?;
    for script in &scripts {
        bench.ui.step(&format!("examples/{}", script.file_name().unwrap_or_default().to_string_lossy()));
        let mut command = Command::new(&python);
        command.arg(script).envs(stack.exports.iter().map(|(name, value)| (name, value)));
        cargo::run_ok(&mut command)?;
    }
    Ok(Outcome::Passed)
}

/// Python with the packages of the examples, kept between runs.
fn virtual_environment(bench: &Bench, examples: &Path) -> Result<PathBuf> {
    let dir = bench.project.data_dir()?.join("python");
    let python = dir.join("bin/python");
    if !python.exists() {
        let made = cargo::run(Command::new("python3").args(["-m", "venv"]).arg(&dir));
        if !made.is_ok_and(|status| status.success()) {
            let _ = fs::remove_dir_all(&dir);
            let text = "the clients need Python with its venv module\n  - Debian, Ubuntu: apt-get install python3-venv, or\n  \
                        - check everything else: cargo verify";
            return Err(Unavailable(text.to_owned()).into());
        }
    }
    bench.ui.step("installing the Python packages of examples/requirements.txt");
    let requirements = examples.join("requirements.txt");
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(requirements);
    cargo::run_ok(&mut pip)?;
    Ok(python)
}
