//! Third-party clients against a stack of their own: every `examples/*.py` runs in a virtual environment with what
//! `examples/requirements.txt` names, finds the addresses in the variables that `cargo stack --env` prints, and says
//! with its exit code whether it worked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devstack::Unavailable;
use devstack::process::output_within;

use super::{Bench, Outcome};
use crate::cargo;

const STACK_TIMEOUT: Duration = Duration::from_secs(900);

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
    let stack = Stack::start(bench)?;
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

/// A detached stack in a directory of its own, beside whatever the developer runs.
struct Stack {
    dir: PathBuf,
    exports: Vec<(String, String)>,
}

impl Stack {
    fn start(bench: &Bench) -> Result<Self> {
        let mut stack = Self { dir: bench.project.data_dir()?.join("clients"), exports: Vec::new() };
        bench.ui.step("starting a stack");
        let started = output_within(&mut stack.command(bench, "--detach")?, STACK_TIMEOUT)?;
        if !started.status.success() {
            bail!("{}{}", String::from_utf8_lossy(&started.stdout), String::from_utf8_lossy(&started.stderr));
        }
        let env = output_within(&mut stack.command(bench, "--env")?, Duration::from_secs(10))?;
        for line in String::from_utf8_lossy(&env.stdout).lines() {
            if let Some((name, value)) = line.strip_prefix("export ").and_then(|line| line.split_once('=')) {
                stack.exports.push((name.to_owned(), value.trim_matches('\'').to_owned()));
            }
        }
        Ok(stack)
    }

    fn command(&self, bench: &Bench, what: &str) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["stack", what]).current_dir(bench.project.root()).env("DEVSTACK_DIR", &self.dir);
        for name in ["DATABASE_URL", "REDIS_URL", "ENGINE_URL", "APP_ENV"] {
            command.env_remove(name);
        }
        Ok(command)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let Ok(own) = std::env::current_exe() else { return };
        let mut command = Command::new(own);
        command.args(["stack", "--stop"]).env("DEVSTACK_DIR", &self.dir);
        let _ = output_within(&mut command, Duration::from_secs(150));
    }
}
