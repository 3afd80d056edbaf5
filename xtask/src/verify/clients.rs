//! Third-party clients against a stack of their own: every script in `examples/` finds the addresses in the variables that
//! `cargo stack --env` prints, and says with its exit code whether it worked. Those in Python run in a virtual environment
//! with what `examples/requirements.txt` names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::process::output_within;

use super::own_stack::OwnStack;
use super::{Bench, Outcome, python};
use crate::cargo;

const SHELL_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(bench: &mut Bench) -> Result<Outcome> {
    let examples = bench.project.root().join("examples");
    let mut scripts: Vec<PathBuf> = fs::read_dir(&examples)
        .context("cannot read examples/")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "py" || extension == "sh" || extension == "mjs")
        })
        .collect();
    scripts.sort();
    let python = python::environment(bench, "python", "examples/requirements.txt")?.join("python");
    let stack = OwnStack::start(bench)?;
    for script in &scripts {
        bench.ui.step(&format!("examples/{}", script.file_name().unwrap_or_default().to_string_lossy()));
        let program = match script.extension().and_then(|extension| extension.to_str()) {
            Some("py") => python.as_path(),
            Some("mjs") => Path::new("node"),
            _ => Path::new("sh"),
        };
        let mut command = Command::new(program);
        command.arg(script).envs(stack.exports.iter().map(|(name, value)| (name, value)));
        // curl is content with any answer; a stream that came to its end says so.
        if program == Path::new("sh") {
            let out = output_within(&mut command, SHELL_TIMEOUT)?;
            let said = String::from_utf8_lossy(&out.stdout);
            ensure!(out.status.success() && said.contains("data: [DONE]"), "it does not stream:\n{said}");
        } else {
            cargo::run_ok(&mut command)?;
        }
    }
    Ok(Outcome::Passed)
}
