//! A change of a source builds our crates again, and nothing else.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;

use super::compose::Compose;
use crate::machine;
use crate::ui::Ui;

/// What the build reads; `.dockerignore` says the same, and a test of the files holds it to that.
const READ: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    ".cargo",
    ".sqlx",
    "crates",
    "migrations",
    "xtask",
    "Dockerfile",
    ".dockerignore",
];
/// The bound on the time from a change to an image, on two cores that do nothing else.
const MAX_REBUILD: Duration = Duration::from_secs(240);
/// Where others use the cores, too.
const PATIENCE: Duration = Duration::from_secs(1200);

pub(super) fn check(compose: &Compose, ui: &Ui) -> Result<()> {
    let context = Copied::copy(compose)?;
    let main = context.0.join("crates/ballast/src/main.rs");
    let mut file = OpenOptions::new().append(true).open(main).context("there is no main.rs")?;
    // Not the one of an earlier run, which is built already.
    writeln!(file, "\n// A change at {:?}.", SystemTime::now())?;
    drop(file);
    let busy = machine::is_busy();
    let started = Instant::now();
    let mut build = Command::new("docker");
    let tag = format!("{}-rebuilt", compose.project());
    build.args(["build", "--progress=plain", "--tag", &tag, "--build-arg"]);
    build.arg(format!("PROFILE={}", compose.profile())).arg(&context.0);
    let out = output_within(build.env("DOCKER_BUILDKIT", "1"), PATIENCE)?;
    let took = started.elapsed();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let _ = compose.docker(&["image", "rm", &tag]);
    ensure!(out.status.success(), "the image cannot be built again:\n{said}");
    ensure!(is_cached(&said, "cargo chef cook")?, "a change of a source builds the dependencies again");
    ensure!(!is_cached(&said, "cargo auditable build")?, "the change was not built");
    ui.step(&format!("built again after a change in {:.0} s, dependencies reused", took.as_secs_f64()));
    ensure!(
        took <= MAX_REBUILD || busy,
        "it took {:.0} s from a change to an image, more than {} s",
        took.as_secs_f64(),
        MAX_REBUILD.as_secs()
    );
    Ok(())
}

/// Whether the step with this command came from the cache.
fn is_cached(said: &str, command: &str) -> Result<bool> {
    let line = said.lines().find(|line| line.starts_with('#') && line.contains(command));
    let number = line.and_then(|line| line.split(' ').next());
    let Some(number) = number else { bail!("the build has no step `{command}`:\n{said}") };
    Ok(said.lines().any(|line| line.trim_end() == format!("{number} CACHED")))
}

/// A copy of what the build reads; deleted when dropped.
struct Copied(PathBuf);

impl Copied {
    fn copy(compose: &Compose) -> Result<Self> {
        let context = Self(std::env::temp_dir().join(format!("{}-context", compose.project())));
        let _ = fs::remove_dir_all(&context.0);
        fs::create_dir_all(&context.0)?;
        for name in READ {
            copy(&compose.root().join(name), &context.0.join(name))
                .with_context(|| format!("copying {name}"))?;
        }
        Ok(context)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to)?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        // Build output of parts that are workspaces of their own.
        if entry.file_name() != "target" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_cached_when_the_builder_says_so_of_its_number() {
        let said = "#9 [build 3/5] RUN cargo chef cook --locked\n#9 CACHED\n#10 [build 5/5] RUN cargo auditable build\n#10 1.2 Compiling";
        assert!(is_cached(said, "cargo chef cook").unwrap());
        assert!(!is_cached(said, "cargo auditable build").unwrap());
        assert!(is_cached(said, "cargo test").is_err());
    }
}
