//! Tools that come as Python packages, in virtual environments that are kept between runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use devstack::{System, Unavailable};

use super::Bench;
use crate::cargo;

/// The `bin` directory of an environment with what a requirements file of the project names. What is there already is not
/// fetched again.
pub(super) fn environment(bench: &Bench, name: &str, requirements: &str) -> Result<PathBuf> {
    let dir = bench.project.data_dir()?.join(name);
    let bin = dir.join("bin");
    if !bin.join("python").exists() && !make(&dir) {
        let say = |line: &str| bench.ui.step(line);
        let refused = devstack::install_python(&System::current(), bench.install, &say)?.err();
        if refused.is_some() || !make(&dir) {
            let text = format!(
                "{requirements} needs Python with its venv module ({})\n  - Debian, Ubuntu: apt-get install python3-venv, or\n  \
                 - name the other steps with --only (--list shows them)",
                refused.unwrap_or_else(|| "it was installed, but does not work".to_owned())
            );
            return Err(Unavailable(text).into());
        }
    }
    bench.ui.step(&format!("installing the Python packages of {requirements}"));
    let mut pip = Command::new(bin.join("python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(bench.project.root().join(requirements));
    cargo::run_ok(&mut pip)?;
    Ok(bin)
}

fn make(dir: &Path) -> bool {
    let made = cargo::run(Command::new("python3").args(["-m", "venv"]).arg(dir));
    let fine = made.is_ok_and(|status| status.success());
    if !fine {
        // What is half there would be taken for whole.
        let _ = fs::remove_dir_all(dir);
    }
    fine
}
