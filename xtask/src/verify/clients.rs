//! Third-party clients against a stack of their own: every script in `examples/` finds the addresses in the variables that
//! `cargo stack --env` prints, and says with its exit code whether it worked. Those in Python run in a virtual environment
//! with what `examples/requirements.txt` names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use devstack::{System, Unavailable};

use super::own_stack::OwnStack;
use super::{Bench, Outcome};
use crate::cargo;

pub(super) fn run(bench: &mut Bench) -> Result<Outcome> {
    let examples = bench.project.root().join("examples");
    let mut scripts: Vec<PathBuf> = fs::read_dir(&examples)
        .context("cannot read examples/")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "py" || extension == "sh"))
        .collect();
    scripts.sort();
    let python = virtual_environment(bench, &examples)?;
    let stack = OwnStack::start(bench)?;
    for script in &scripts {
        bench.ui.step(&format!("examples/{}", script.file_name().unwrap_or_default().to_string_lossy()));
        let is_python = script.extension().is_some_and(|extension| extension == "py");
        let mut command = Command::new(if is_python { python.as_path() } else { Path::new("sh") });
        command.arg(script).envs(stack.exports.iter().map(|(name, value)| (name, value)));
        cargo::run_ok(&mut command)?;
    }
    Ok(Outcome::Passed)
}

/// Python with the packages of the examples, kept between runs.
fn virtual_environment(bench: &Bench, examples: &Path) -> Result<PathBuf> {
    let dir = bench.project.data_dir()?.join("python");
    let python = dir.join("bin/python");
    if !python.exists() && !make_environment(&dir) {
        let say = |line: &str| bench.ui.step(line);
        let refused = devstack::install_python(&System::current(), bench.install, &say)?.err();
        if refused.is_some() || !make_environment(&dir) {
            let text = format!(
                "the clients need Python with its venv module ({})\n  - Debian, Ubuntu: apt-get install python3-venv, or\n  \
                 - check everything else: cargo verify",
                refused.unwrap_or_else(|| "it was installed, but does not work".to_owned())
            );
            return Err(Unavailable(text).into());
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

fn make_environment(dir: &Path) -> bool {
    let made = cargo::run(Command::new("python3").args(["-m", "venv"]).arg(dir));
    let fine = made.is_ok_and(|status| status.success());
    if !fine {
        // What is half there would be taken for whole.
        let _ = fs::remove_dir_all(dir);
    }
    fine
}
