//! `cargo xtask fuzz`: every target in `fuzz/`, a workspace of its own outside the shipped tree, for a bounded time each.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;
use devstack::project::Project;

use crate::ui::{self, Ui};
use crate::{cargo, interrupts};

/// The release that is installed where there is none.
const CARGO_FUZZ: &str = "0.13.2";

const EXAMPLES: &str = "\
Examples:
  cargo xtask fuzz                             all targets, a minute each
  cargo xtask fuzz sse_relay --seconds 3600    one target for an hour
  cargo xtask fuzz --list                      name them

What is found is a file under fuzz/artifacts; `cargo fuzz run TARGET FILE` repeats it. What was learned stays under
fuzz/corpus, for the next run.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask fuzz [OPTIONS] [TARGET]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only this target; --list names them
    target: Option<String>,
    /// So many seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Name the targets, run nothing
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let project = Project::find()?;
    let mut targets = targets(&project.root().join("fuzz"))?;
    if let Some(name) = &args.target {
        targets.retain(|target| target == name);
        ensure!(!targets.is_empty(), "there is no target `{name}`; --list names them");
    }
    if args.list {
        for target in &targets {
            ui::print(target);
        }
        return Ok(ExitCode::SUCCESS);
    }
    interrupts::listen(false)?;
    let ui = Ui::new();
    install(&project, &ui)?;
    let mut failed = Vec::new();
    for target in targets {
        ui.title(&format!("\n{target}"));
        let mut fuzz = cargo::cargo(&project);
        let time = format!("-max_total_time={}", args.seconds);
        fuzz.args(["fuzz", "run", &target, "--", &time, "-dict=fuzz/dictionary.txt", "-max_len=4096"]);
        fuzz.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        // The fuzzer's instrumentation is an unstable option of the compiler: with this the pinned release takes it.
        fuzz.env("RUSTC_BOOTSTRAP", "1");
        if !cargo::run(&mut fuzz)?.success() {
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!("something was found by: {}", failed.join(", "));
    }
    ui.step("nothing was found");
    Ok(ExitCode::SUCCESS)
}

/// The targets are the files; the manifest must name each.
fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let files = fs::read_dir(fuzz.join("fuzz_targets")).context("cannot read fuzz/fuzz_targets")?;
    let mut found: Vec<String> = files
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .collect();
    found.sort();
    Ok(found)
}

fn install(project: &Project, ui: &Ui) -> Result<()> {
    let mut version = cargo::cargo(project);
    let out = output_within(version.args(["fuzz", "--version"]), Duration::from_secs(30));
    if out.is_ok_and(|out| out.status.success()) {
        return Ok(());
    }
    ui.step(&format!("installing cargo-fuzz {CARGO_FUZZ} (a minute or two)"));
    let mut install = cargo::cargo(project);
    cargo::run_ok(install.args(["install", "--locked", "--quiet", "cargo-fuzz", "--version", CARGO_FUZZ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fuzz_target_is_a_file_and_a_program_of_the_manifest() {
        let fuzz = Project::find().unwrap().root().join("fuzz");
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        let named: Vec<&str> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
            .collect();
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, targets(&fuzz).unwrap());
        for name in named {
            assert!(manifest.contains(&format!("[[bin]]\nname = \"{name}\"\npath")), "{name}");
        }
    }
}
