//! A stack of the checks' own, beside whatever the developer runs; and the step that tries `cargo stack` with it, as a
//! newcomer would: start, the printed commands, stop.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;
use devstack::{Record, System};

use super::{Bench, Outcome};
use crate::{cargo, smoke};

/// It may have to be built first.
const START_TIMEOUT: Duration = Duration::from_secs(1800);
const STOP_TIMEOUT: Duration = Duration::from_secs(150);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// A detached stack; stopped when dropped.
pub(super) struct OwnStack {
    root: PathBuf,
    dir: PathBuf,
    vars: &'static [(&'static str, &'static str)],
    /// What it printed on its start.
    said: String,
    /// What `--env` prints.
    pub(super) exports: Vec<(String, String)>,
}

impl OwnStack {
    pub(super) fn start(bench: &Bench) -> Result<Self> {
        Self::start_with(bench, &[])
    }

    /// With these variables for the roles.
    pub(super) fn start_with(bench: &Bench, vars: &'static [(&'static str, &'static str)]) -> Result<Self> {
        let root = bench.project.root().to_owned();
        let dir = bench.project.data_dir()?.join("verify");
        let mut stack = Self { root, dir, vars, said: String::new(), exports: Vec::new() };
        bench.ui.step("starting a stack");
        // The tests, which ran before, have built the program. `cargo build` alone would build half the dependencies once
        // more: without the features that only tests ask for.
        let built = cargo::output_dir()?.join("ballast");
        let built = built.to_str().filter(|_| built.exists());
        let arguments =
            built.map_or_else(|| vec!["--detach"], |program| vec!["--detach", "--binary", program]);
        stack.said = stack.run(&arguments, START_TIMEOUT)?;
        for line in stack.run(&["--env"], COMMAND_TIMEOUT)?.lines() {
            let pair = line.strip_prefix("export ").and_then(|line| line.split_once('='));
            let (name, value) = pair.with_context(|| format!("`cargo stack --env` says {line}"))?;
            stack.exports.push((name.to_owned(), value.trim_matches('\'').to_owned()));
        }
        Ok(stack)
    }

    pub(super) fn export(&self, name: &str) -> Option<String> {
        self.exports.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// `cargo stack <options>`; what it prints.
    fn run(&self, options: &[&str], timeout: Duration) -> Result<String> {
        let mut command = Command::new(cargo::own_program()?);
        command.arg("stack").args(options).current_dir(&self.root).env("DEVSTACK_DIR", &self.dir);
        for name in super::steps::OF_A_STACK {
            command.env_remove(name);
        }
        command.envs(self.vars.iter().copied());
        let out = output_within(&mut command, timeout)?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        if !out.status.success() {
            bail!(
                "`cargo stack {}` failed:\n{said}{}",
                options.join(" "),
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Ok(said)
    }

    /// The processes that it has written down.
    fn records(&self) -> Result<Vec<Record>> {
        let state = std::fs::read_to_string(self.dir.join("stack/state"))
            .context("a running stack has a state file")?;
        state.lines().filter_map(|line| line.strip_prefix("process=")).map(str::parse).collect()
    }

    /// The commands to copy that it printed.
    fn printed_commands(&self) -> Result<String> {
        let lines = self.said.lines().skip_while(|line| !line.starts_with("TOKEN="));
        let commands: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
        ensure!(commands.len() > 1, "no commands to copy in:\n{}", self.said);
        Ok(commands.join("\n"))
    }
}

impl Drop for OwnStack {
    fn drop(&mut self) {
        let _ = self.run(&["--stop"], STOP_TIMEOUT);
    }
}

/// The step.
pub(super) fn run(bench: &mut Bench) -> Result<Outcome> {
    let stack = OwnStack::start(bench)?;
    smoke::run_with(|name| stack.export(name), &bench.ui)?;
    if System::current().path.iter().any(|dir| dir.join("curl").exists()) {
        let commands = stack.printed_commands()?;
        let out = output_within(Command::new("sh").arg("-c").arg(&commands), COMMAND_TIMEOUT)?;
        let said = String::from_utf8_lossy(&out.stdout);
        ensure!(said.contains("data: [DONE]"), "the printed commands do not stream:\n{commands}\n{said}");
        bench.ui.step("the printed commands stream a completion");
    } else {
        bench.ui.step("the printed commands were not tried: there is no curl");
    }
    let records = stack.records()?;
    stack.run(&["--stop"], STOP_TIMEOUT)?;
    for record in &records {
        ensure!(
            !record.id.is_alive(),
            "`cargo stack --stop` left {} running (process {})",
            record.name,
            record.id.pid
        );
    }
    bench.ui.step(&format!("stopped, none of {} processes is left", records.len()));
    Ok(Outcome::Passed)
}
