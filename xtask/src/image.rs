//! `cargo xtask image`: builds the container image, starts the compose stack beside whatever runs, and tries it: the main
//! job, a user that is not root, a read-only file system, an orderly end on SIGTERM, the size.
//!
//! What it expects of the Docker files: a build argument `PROFILE` (`local` or `release`), the services `api`, `worker` and
//! `migrate` in `docker-compose.yml`, the API's port 8080 published, and `ballast` as the entry point.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;
use devstack::project::Project;
use devstack::{System, Unavailable, ports};

use crate::smoke::{self, Demo};
use crate::ui::Ui;
use crate::{cargo, http, interrupts};

const MAX_SIZE: u64 = 60 * 1000 * 1000;
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than `stop_grace_period`: an end that needs the kill is a failure.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
/// From `docker start` to ready. Two seconds are usual; the bound only catches what is broken.
const START_TIMEOUT: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  cargo xtask image                     build with the fast profile and try the compose stack
  cargo xtask image --profile release   the image as it ships
  cargo xtask image --keep              leave the stack running (docker compose -p ballast-image down -v ends it)

Needs Docker with the compose plugin; without a daemon the exit code is 2.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask image [OPTIONS]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Cargo profile of the build: local (faster to build) or release
    #[arg(long, value_name = "PROFILE", default_value = "local", value_parser = ["local", "release"])]
    profile: String,
    /// Leave the stack running
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    check(&Project::find()?, &args.profile, args.keep, &ui)?;
    ui.step("the image is fine");
    Ok(ExitCode::SUCCESS)
}

/// The whole check; [`Unavailable`] where there is no Docker.
pub(crate) fn check(project: &Project, profile: &str, keep: bool, ui: &Ui) -> Result<()> {
    let compose = Compose::find(project, keep)?;
    ui.step(&format!("building the image, profile {profile} (the first time takes many minutes)"));
    cargo::run_ok(compose.command().args(["build", "--build-arg", &format!("PROFILE={profile}")]))?;
    ui.step("starting the compose stack");
    // By name: `--wait` would take the end of the one-shot migration for a failure.
    let up = ["up", "--detach", "--wait", "--wait-timeout", "180", "api", "worker"];
    if cargo::run_ok(compose.command().args(up)).is_err() {
        interrupts::check()?;
        let _ = cargo::run(compose.command().args(["logs", "--tail=40"]));
        bail!("the compose stack did not become healthy; its logs are above");
    }

    let seeded = compose.output(&["run", "--rm", "--no-deps", "-T", "migrate", "seed", "--json"])?;
    let demo = Demo::parse(&seeded).with_context(|| format!("no demo account in: {seeded}"))?;
    smoke::run(compose.api_port()?, &demo, ui)?;
    for service in ["api", "worker"] {
        compose.check_container(service, ui)?;
    }
    compose.check_restart(ui)
}

/// The compose stack under a name of its own; taken down when dropped.
struct Compose {
    docker: PathBuf,
    root: PathBuf,
    keep: bool,
    ports: Vec<(&'static str, String)>,
}

impl Compose {
    const NAME: &'static str = "ballast-image";

    fn find(project: &Project, keep: bool) -> Result<Self> {
        let no_docker = |reason: &str| {
            let text = format!(
                "{reason}\n  - install and start Docker, then run this again, or\n  - check everything else: cargo verify"
            );
            anyhow::Error::from(Unavailable(text))
        };
        let docker = System::current().path.iter().map(|dir| dir.join("docker")).find(|path| path.is_file());
        let docker = docker
            .ok_or_else(|| no_docker("building images needs Docker, and there is no docker command"))?;
        let answers = |arguments: &[&str]| {
            output_within(Command::new(&docker).args(arguments), Duration::from_secs(20))
                .is_ok_and(|out| out.status.success())
        };
        if !answers(&["version", "--format", "{{.Server.Version}}"]) {
            return Err(no_docker("building images needs Docker, and no Docker daemon answers"));
        }
        if !answers(&["compose", "version"]) {
            return Err(no_docker("trying the image needs Docker's compose plugin (docker compose version)"));
        }
        // Whatever the compose file publishes must not collide with a stack that runs already.
        let mut published = Vec::new();
        for name in ["API_PORT", "ADMIN_PORT", "WORKER_PORT", "POSTGRES_PORT", "REDIS_PORT", "ENGINE_PORT"] {
            published.push((name, ports::free_port(None)?.to_string()));
        }
        Ok(Self { docker, root: project.root().to_owned(), keep, ports: published })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.docker);
        command.args(["compose", "--project-name", Self::NAME]).current_dir(&self.root);
        command.envs(self.ports.iter().map(|(name, port)| (name, port)));
        command
    }

    fn output(&self, arguments: &[&str]) -> Result<String> {
        output(self.command().args(arguments))
    }

    fn inspect(&self, kind: &str, id: &str, format: &str) -> Result<String> {
        output(Command::new(&self.docker).args([kind, "inspect", "--format", format, id]))
    }

    fn container(&self, service: &str) -> Result<String> {
        let id = self.output(&["ps", "--all", "--quiet", service])?;
        id.lines()
            .next()
            .map(ToOwned::to_owned)
            .with_context(|| format!("there is no container of {service}"))
    }

    fn api_port(&self) -> Result<u16> {
        let address = self.output(&["port", "api", "8080"])?;
        let port = address.trim().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        port.with_context(|| format!("the API's port is not published: {address}"))
    }

    fn check_container(&self, service: &str, ui: &Ui) -> Result<()> {
        let id = self.container(service)?;
        let user = self.inspect("container", &id, "{{.Config.User}}")?;
        let name = user.trim().split(':').next().unwrap_or_default();
        ensure!(!["", "0", "root"].contains(&name), "{service} runs as root (user `{name}`)");
        let read_only = self.inspect("container", &id, "{{.HostConfig.ReadonlyRootfs}}")?;
        ensure!(read_only.trim() == "true", "the file system of {service} can be written");
        let image = self.inspect("container", &id, "{{.Image}}")?;
        let size: u64 =
            self.inspect("image", image.trim(), "{{.Size}}")?.trim().parse().context("no image size")?;
        ensure!(
            size <= MAX_SIZE,
            "the image of {service} has {} MB, more than {}",
            size / 1_000_000,
            MAX_SIZE / 1_000_000
        );
        let memory = output(Command::new(&self.docker).args([
            "stats",
            "--no-stream",
            "--format",
            "{{.MemUsage}}",
            &id,
        ]))?;
        let megabytes = size as f64 / 1e6;
        ui.step(&format!(
            "{service}: user {name}, read-only, image {megabytes:.1} MB, memory {}",
            memory.trim()
        ));
        Ok(())
    }

    /// SIGTERM ends both roles in order, and the API is ready again soon after a start.
    fn check_restart(&self, ui: &Ui) -> Result<()> {
        for service in ["worker", "api"] {
            let id = self.container(service)?;
            let started = Instant::now();
            let mut stop = Command::new(&self.docker);
            output_within(stop.args(["stop", "--time", "100", &id]), STOP_TIMEOUT)?;
            let code = self.inspect("container", &id, "{{.State.ExitCode}}")?;
            ensure!(code.trim() == "0", "{service} ended with {} on SIGTERM", code.trim());
            ui.step(&format!(
                "{service}: ended in order {:.1} s after SIGTERM",
                started.elapsed().as_secs_f64()
            ));
        }
        let id = self.container("api")?;
        let started = Instant::now();
        output(Command::new(&self.docker).args(["start", &id]))?;
        // The port may be another one after a start.
        while !http::get(self.api_port()?, "/readyz").is_ok_and(|answer| answer.status == 200) {
            interrupts::check()?;
            ensure!(
                started.elapsed() < START_TIMEOUT,
                "the API was not ready {} s after its start",
                START_TIMEOUT.as_secs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        ui.step(&format!("api: ready {:.1} s after its start", started.elapsed().as_secs_f64()));
        Ok(())
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if !self.keep {
            let mut down = self.command();
            down.args(["down", "--volumes", "--remove-orphans", "--timeout", "20"]);
            let _ = output_within(&mut down, STOP_TIMEOUT);
        }
    }
}

fn output(command: &mut Command) -> Result<String> {
    let out = output_within(command, CALL_TIMEOUT)?;
    if !out.status.success() {
        bail!("`{}` failed: {}", cargo::shown(command), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
