//! `cargo xtask upgrade`: the release before and this one, two different builds, on one database under load (case S3). Old, then
//! both on the new schema, then new alone, then back to old: no request fails, no stream is cut.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devstack::Install;
use devstack::ports::free_port;
use devstack::process::{ProcessId, output_within};
use devstack::project::Project;
use nix::sys::signal::Signal;

use crate::smoke::{self, Demo};
use crate::soak::Load;
use crate::throwaway::Throwaway;
use crate::ui::Ui;
use crate::{cargo, http, interrupts};

const START: Duration = Duration::from_secs(60);
/// `SHUTDOWN_BUDGET` in development, and some for a busy machine.
const END: Duration = Duration::from_secs(20);

const EXAMPLES: &str = "\
Examples:
  cargo xtask upgrade                  from the newest tag; without tags from the commit before this one
  cargo xtask upgrade --from v1.4.0    from another one

Builds both (the older one in a working tree of its own, in target/upgrade). Takes minutes; everything stays on this machine.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask upgrade [OPTIONS]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The release that runs now: a tag, a branch, a commit
    #[arg(long, value_name = "COMMIT")]
    from: Option<String>,
    /// Seconds of load in each phase
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Install missing servers without asking
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let project = Project::find()?;
    let from = args.from.clone().map_or_else(|| release_before(&project), Ok)?;
    let (old, new) = (build_old(&project, &from, &ui)?, build_new(&project, &ui)?);
    let throwaway = Throwaway::start(&project, if args.yes { Install::Yes } else { Install::Ask }, &ui)?;
    let stand = Stand::new(&throwaway)?;
    let phase = Duration::from_secs(args.seconds);

    ui.step(&format!("{from} alone"));
    stand.once(&old, &["migrate", "up"])?;
    let demo = Demo::seeded(|| stand.command(&old, &["seed", "--json"]))?;
    let _engine = stand.engine(&new)?;
    let mut first = stand.serve(&old)?;
    let load = Load::start(&[first.port], &demo);
    pause(phase)?;

    ui.step("the new schema, while the old release serves");
    stand.once(&new, &["migrate", "up"])?;
    pause(phase)?;
    ui.step("both releases on it");
    let mut second = stand.serve(&new)?;
    let beside = Load::start(&[second.port], &demo);
    pause(phase)?;
    smoke::run(first.port, &demo, &ui)?;
    smoke::run(second.port, &demo, &ui)?;
    ui.step(&format!("old: {}", load.end()?.summary));
    first.end()?;

    ui.step("the new release alone, then back to the old one");
    pause(phase)?;
    let mut third = stand.serve(&old)?;
    let again = Load::start(&[third.port], &demo);
    pause(phase)?;
    ui.step(&format!("new: {}", beside.end()?.summary));
    second.end()?;
    smoke::run(third.port, &demo, &ui)?;
    ui.step(&format!("old again: {}", again.end()?.summary));
    third.end()?;
    ui.step(&format!("{from} and this checkout run side by side: nothing failed"));
    Ok(ExitCode::SUCCESS)
}

fn release_before(project: &Project) -> Result<String> {
    let tag = git(project, &["describe", "--tags", "--abbrev=0"]);
    tag.or_else(|_| git(project, &["rev-parse", "--short", "HEAD^"]))
        .context("there is neither a tag nor a commit before this one: name one with --from")
}

fn git(project: &Project, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    let out = output_within(command.current_dir(project.root()).args(arguments), Duration::from_secs(60))?;
    ensure!(
        out.status.success(),
        "git {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// In a working tree and a target directory of its own, which stay: the next time it is quick.
fn build_old(project: &Project, from: &str, ui: &Ui) -> Result<PathBuf> {
    let place = cargo::target_dir()?.join("upgrade");
    let tree = place.join("tree");
    if tree.exists() {
        git(project, &["worktree", "remove", "--force", &tree.display().to_string()])?;
    }
    git(project, &["worktree", "prune"])?;
    git(project, &["worktree", "add", "--detach", &tree.display().to_string(), from])?;
    ui.step(&format!("building {from}"));
    let mut build = cargo::cargo(project);
    build.current_dir(&tree).env("CARGO_TARGET_DIR", place.join("target"));
    let outcome = cargo::run_ok(build.args(["build", "--locked", "--package", "ballast"]));
    git(project, &["worktree", "remove", "--force", &tree.display().to_string()])?;
    outcome.map(|()| place.join("target/debug/ballast"))
}

fn build_new(project: &Project, ui: &Ui) -> Result<PathBuf> {
    ui.step("building this checkout");
    cargo::run_ok(cargo::cargo(project).args(["build", "--package", "ballast"]))?;
    Ok(cargo::target_dir()?.join("debug/ballast"))
}

fn pause(time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        interrupts::check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What all processes are told.
struct Stand {
    vars: Vec<(String, String)>,
    engine: u16,
}

impl Stand {
    fn new(throwaway: &Throwaway) -> Result<Self> {
        let engine = free_port(None)?;
        let vars = [
            ("DATABASE_URL", throwaway.services.postgres.url.as_str()),
            ("REDIS_URL", &throwaway.services.redis.url),
            ("ENGINE_URL", &format!("http://127.0.0.1:{engine}/v1")),
            ("HOST", "127.0.0.1"),
            ("LOG_LEVEL", "warn"),
            ("RATE_LIMIT_GLOBAL", "1000000/1m"),
            ("RATE_LIMIT_REFRESH", "1000000/15m"),
            ("RATE_LIMIT_USER_JOBS", "1000000/1h"),
            ("RATE_LIMIT_AI_REQUESTS", "1000000/1m"),
            ("RATE_LIMIT_AI_TOKENS", "1000000000/1m"),
            ("RATE_LIMIT_AI_TOKENS_DAILY", "1000000000/1d"),
            ("AI_CONCURRENT_STREAMS", "1000"),
        ];
        Ok(Self { vars: vars.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(), engine })
    }

    fn command(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.args(arguments).env_clear().envs(self.vars.iter().cloned()).stdin(Stdio::null());
        command
    }

    fn once(&self, binary: &Path, arguments: &[&str]) -> Result<()> {
        let out = output_within(&mut self.command(binary, arguments), START)?;
        ensure!(
            out.status.success(),
            "{}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(())
    }

    fn engine(&self, binary: &Path) -> Result<Release> {
        let mut command = self.command(binary, &["engine-sim", "--port", &self.engine.to_string()]);
        Release::start(&mut command, self.engine, "/health")
    }

    /// API and worker in one process, ready.
    fn serve(&self, binary: &Path) -> Result<Release> {
        let port = free_port(None)?;
        Release::start(self.command(binary, &["all"]).env("PORT", port.to_string()), port, "/readyz")
    }
}

/// A running process; killed when dropped.
struct Release {
    child: Child,
    port: u16,
}

impl Release {
    fn start(command: &mut Command, port: u16, path: &str) -> Result<Self> {
        let child =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("it does not start")?;
        let mut release = Self { child, port };
        let until = Instant::now() + START;
        while !http::get(port, path).is_ok_and(|answer| answer.status == 200) {
            interrupts::check()?;
            if let Some(status) = release.child.try_wait()? {
                bail!("it ended instead of getting ready: {status}");
            }
            ensure!(Instant::now() < until, "not ready within {START:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(release)
    }

    /// SIGTERM; it ends in order.
    fn end(&mut self) -> Result<()> {
        let id = ProcessId::of_child(&self.child);
        id.signal(Signal::SIGTERM);
        let until = Instant::now() + END;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "it ended with {status} on SIGTERM");
                return Ok(());
            }
            ensure!(Instant::now() < until, "it did not end within {END:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
