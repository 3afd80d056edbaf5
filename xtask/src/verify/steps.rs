//! The list of steps.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devstack::process::output_within;
use devstack::project::Project;
use devstack::{System, Unavailable};

use super::{Bench, Outcome, Step, Tier, browser, clients, contract, deployment, own_stack};
use crate::image::{Given, check as check_image};
use crate::{cargo, prepare};

/// Crates whose tests start servers themselves.
const WITH_SERVERS: [&str; 3] = ["ballast", "devstack", "test-support"];

/// Variables that people set for a stack of their own. None of them is any business of the checks.
pub(super) const OF_A_STACK: [&str; 8] =
    ["DATABASE_URL", "REDIS_URL", "ENGINE_URL", "APP_ENV", "HOST", "PORT", "ADMIN_PORT", "LOG_FORMAT"];

pub(super) fn steps(tier: Tier, project: &Project) -> Result<Vec<Step>> {
    let mut steps = vec![
        step("format", "cargo fmt --all --check", |bench| {
            run(&mut cargo_with(bench, &["fmt", "--all", "--check"]))
        }),
        step("lints", "cargo clippy --workspace --all-targets --locked -- -D warnings", |bench| {
            run(&mut cargo_with(
                bench,
                &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
            ))
        }),
    ];
    if tier == Tier::Quick {
        let packages = quick_packages(project)?.join(" -p ");
        let repeat = format!("{} -p {packages}", test_words().join(" "));
        steps.push(Step { name: "quick tests", repeat: format!("cargo {repeat}"), run: quick_tests });
        return Ok(steps);
    }
    let all_tests = format!("cargo {} --workspace", test_words().join(" "));
    steps.push(Step { name: "tests", repeat: all_tests, run: tests });
    steps.push(step("doc tests", "cargo test --workspace --doc", doc_tests));
    steps.push(step("docs", "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps", docs));
    steps.push(step("queries", "cargo xtask prepare --check", queries));
    steps.push(step(
        "stack",
        "cargo stack --detach && cargo stack --try && cargo stack --stop",
        own_stack::run,
    ));
    steps.push(step("deployment", "cargo verify --only deployment", deployment::run));
    if tier == Tier::Full {
        steps.push(step("dependencies", "cargo deny check", dependencies));
        steps.push(step("clients", "cargo verify --full --only clients", clients::run));
        steps.push(step("browser", "cargo verify --full --only browser", browser::run));
        steps.push(step("contract", "cargo verify --full --only contract", contract::run));
        steps.push(step("image", "cargo xtask image", image));
    }
    Ok(steps)
}

fn step(name: &'static str, repeat: &str, run: fn(&mut Bench) -> Result<Outcome>) -> Step {
    Step { name, repeat: repeat.to_owned(), run }
}

/// A failure needs no text of its own: the command has said what is wrong.
fn run(command: &mut Command) -> Result<Outcome> {
    let status = cargo::run(command)?;
    if !status.success() {
        bail!("{} failed ({status})", cargo::shown(command).split(' ').take(2).collect::<Vec<_>>().join(" "));
    }
    Ok(Outcome::Passed)
}

fn cargo_with(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = cargo::cargo(&bench.project);
    command.args(arguments);
    for name in OF_A_STACK {
        command.env_remove(name);
    }
    command
}

/// nextest where it is installed: it runs the tests of all crates side by side.
fn test_words() -> Vec<&'static str> {
    if has_nextest() { vec!["nextest", "run"] } else { vec!["test"] }
}

fn has_nextest() -> bool {
    installed("nextest")
}

fn installed(subcommand: &str) -> bool {
    let mut command = Command::new("cargo");
    output_within(command.args([subcommand, "--version"]), Duration::from_secs(30))
        .is_ok_and(|out| out.status.success())
}

/// Crates whose tests need no server: those that don't use `test-support`.
fn quick_packages(project: &Project) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(project.root().join("crates")).context("cannot read crates/")? {
        let dir = entry?.path();
        let Ok(manifest) = fs::read_to_string(dir.join("Cargo.toml")) else { continue };
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !manifest.contains("test-support") && !WITH_SERVERS.contains(&name.as_str()) {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn quick_tests(bench: &mut Bench) -> Result<Outcome> {
    let mut command = cargo_with(bench, &test_words());
    for package in quick_packages(&bench.project)? {
        command.arg("--package").arg(package);
    }
    run(&mut command)
}

fn tests(bench: &mut Bench) -> Result<Outcome> {
    // Before hundreds of tests have run, and not by the first that needs it.
    let ui = &bench.ui;
    devstack::nginx(&System::current(), bench.install, &|line| ui.step(line))?;
    let mut command = cargo_with(bench, &test_words());
    command.args(["--workspace", "--no-fail-fast"]);
    if !has_nextest() {
        // Doc tests have a step of their own.
        command.arg("--all-targets");
    }
    with_servers(bench, &mut command)?;
    run(&mut command)
}

fn doc_tests(bench: &mut Bench) -> Result<Outcome> {
    let mut command = cargo_with(bench, &["test", "--workspace", "--doc", "--quiet"]);
    with_servers(bench, &mut command)?;
    run(&mut command)
}

fn with_servers(bench: &mut Bench, command: &mut Command) -> Result<()> {
    let services = &bench.servers()?.services;
    command.env("TEST_DATABASE_URL", &services.postgres.url).env("TEST_REDIS_URL", &services.redis.url);
    Ok(())
}

fn docs(bench: &mut Bench) -> Result<Outcome> {
    let mut command = cargo_with(bench, &["doc", "--workspace", "--no-deps", "--quiet"]);
    run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

fn queries(bench: &mut Bench) -> Result<Outcome> {
    let url = bench.servers()?.services.postgres.url.clone();
    let fresh = prepare::describe(&bench.project, &url, &[], &bench.ui)?;
    prepare::compare(&bench.project, &fresh)?;
    Ok(Outcome::Passed)
}

fn dependencies(bench: &mut Bench) -> Result<Outcome> {
    if !installed("deny") {
        bench.ui.step("installing cargo-deny (a few minutes)");
        if !cargo::run(&mut cargo_with(bench, &["install", "--locked", "--quiet", "cargo-deny"]))?.success() {
            return Ok(Outcome::Skipped("cargo-deny cannot be installed here".to_owned()));
        }
    }
    run(&mut cargo_with(bench, &["deny", "--workspace", "check", "bans", "licenses", "sources"]))?;
    // The database of known vulnerabilities comes from GitHub; without it nothing can be said.
    let mut advisories = cargo_with(bench, &["deny", "--workspace", "check", "advisories"]);
    let out = output_within(&mut advisories, Duration::from_secs(300))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() {
        return Ok(Outcome::Passed);
    }
    if said.contains("failed to fetch advisory database") {
        return Ok(Outcome::Skipped(
            "bans, licenses and sources passed; the advisory database is out of reach".to_owned(),
        ));
    }
    bail!("{said}")
}

fn image(bench: &mut Bench) -> Result<Outcome> {
    match check_image(&bench.project, "local", false, Given::Nothing, &bench.ui) {
        Ok(()) => Ok(Outcome::Passed),
        Err(error) if error.is::<Unavailable>() => {
            let reason = error.to_string();
            Ok(Outcome::Skipped(reason.lines().next().unwrap_or_default().to_owned()))
        }
        Err(error) => Err(error),
    }
}
