//! `cargo xtask image`: builds the container image, starts the compose stack beside whatever runs, and tries what the
//! README promises of it: the main job over HTTP, one set of limits over three replicas, a user that is not root, a
//! read-only file system, no secret inside, size, the time of a rebuild, memory, the time to get ready, an orderly end on SIGTERM. Then the
//! production stack: a rolling update under load, what Prometheus sees of it, everything that makes `deploy.sh` take itself back, and a
//! backup that is restored.
//!
//! Project, image tag and ports are its own, so a stack that somebody uses is not touched, and everything is gone afterwards.

mod backup;
mod compose;
mod contents;
mod failures;
mod load;
mod observability;
mod production;
mod rebuild;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devstack::Lock;
use devstack::project::Project;

use self::compose::Compose;
use crate::smoke::{self, Demo};
use crate::ui::Ui;
use crate::{http, interrupts, machine};

/// What the README promises. Megabytes are 1000 x 1000 bytes.
const MAX_IMAGE_MB: f64 = 60.0;
const MAX_IDLE_MB: f64 = 40.0;
const MAX_READY: Duration = Duration::from_secs(2);
/// `SHUTDOWN_BUDGET` in development, which is what the stack runs as.
const SHUTDOWN_BUDGET: Duration = Duration::from_secs(10);
/// A busy machine may be slow once, not always.
const STARTS: usize = 3;
const START_TIMEOUT: Duration = Duration::from_secs(30);
const REPLICAS: u16 = 3;
/// `RATE_LIMIT_LOGIN` in development.
const LOGIN_LIMIT: usize = 50;

const EXAMPLES: &str = "\
Examples:
  cargo xtask image                     build with the fast profile and try the compose stack
  cargo xtask image --profile release   the image as it ships
  cargo xtask image --image ghcr.io/you/ballast:1.4.0     one that CI pushed
  cargo xtask image --keep              leave the stack running; the last line says how to end it

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
    /// Keep the image under this name
    #[arg(long, value_name = "NAME:TAG")]
    tag: Option<String>,
    /// Try this image, which is on this machine, instead of building one
    #[arg(long, value_name = "NAME:TAG", conflicts_with_all = ["profile", "tag"])]
    image: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let given = match (&args.image, &args.tag) {
        (Some(image), _) => Given::Image(image),
        (None, Some(tag)) => Given::Tag(tag),
        (None, None) => Given::Nothing,
    };
    check(&Project::find()?, &args.profile, args.keep, given, &ui)?;
    ui.step("the image is fine");
    Ok(ExitCode::SUCCESS)
}

/// What the caller has, or wants to have.
#[derive(Clone, Copy)]
pub(crate) enum Given<'a> {
    Nothing,
    /// A name for the image that is built.
    Tag(&'a str),
    /// An image, so that none is built.
    Image(&'a str),
}

/// The whole check; [`devstack::Unavailable`] where there is no Docker.
pub(crate) fn check(project: &Project, profile: &str, keep: bool, given: Given<'_>, ui: &Ui) -> Result<()> {
    let mut compose = Compose::find(project, profile)?;
    let Some(_lock) = Lock::try_acquire(&lock(project)?)? else {
        bail!("another `cargo xtask image` of this checkout is running");
    };
    // What a killed run left.
    compose.down();
    let outcome = try_all(&mut compose, given, ui);
    if keep {
        ui.step(&format!("left running; the end of it: {}", compose.how_to_end()));
    } else {
        compose.down();
    }
    outcome
}

fn lock(project: &Project) -> Result<PathBuf> {
    Ok(project.data_dir()?.join("image.lock"))
}

fn try_all(compose: &mut Compose, given: Given<'_>, ui: &Ui) -> Result<()> {
    if let Given::Image(image) = given {
        compose.docker(&["tag", image, &compose.image()])?;
    } else {
        build(compose, ui)?;
        labels(compose)?;
        rebuild::check(compose, ui)?;
    }
    if let Given::Tag(tag) = given {
        compose.docker(&["tag", &compose.image(), tag])?;
    }
    size(compose, ui)?;
    contents::check(compose, ui)?;
    // As after `cp .env.example .env`: every name is there, some with nothing behind the `=`.
    compose.use_env_file(Some(".env.example"));
    up(compose, &[], ui)?;
    idle(compose, ui)?;
    let demo = demo(compose)?;
    let api = compose.only("api")?;
    smoke::run(compose.port(&api)?, &demo, ui)?;
    for service in ["api", "worker", "engine-sim"] {
        confined(compose, service, ui)?;
    }
    ends_in_order(compose, ui)?;
    gets_ready(compose, ui)?;
    // And as on a fresh clone, without any `.env`.
    compose.use_env_file(None);
    compose.use_ports(REPLICAS)?;
    up(compose, &["--scale", &format!("api={REPLICAS}")], ui)?;
    let ports = compose.containers("api")?.iter().map(|id| compose.port(id)).collect::<Result<Vec<_>>>()?;
    ensure!(ports.len() == usize::from(REPLICAS), "{} replicas of the API, not {REPLICAS}", ports.len());
    smoke::run(ports[0], &demo, ui)?;
    smoke::one_login_limit(&ports, "nobody@example.com", LOGIN_LIMIT)?;
    ui.step(&format!("{REPLICAS} replicas: one limit, {LOGIN_LIMIT} logins admitted, then 429"));
    // Two stacks at a time are too much for a small machine.
    compose.run(&["--progress", "quiet", "down", "--volumes", "--timeout", "20"])?;
    production::check(compose, !matches!(given, Given::Image(_)), ui)
}

fn build(compose: &Compose, ui: &Ui) -> Result<()> {
    let profile = compose.profile();
    ui.step(&format!("building the image, profile {profile} (the first time takes many minutes)"));
    let started = Instant::now();
    compose.run(&["build"])?;
    ui.step(&format!("built in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Whoever finds the image somewhere learns which commit it is of.
fn labels(compose: &Compose) -> Result<()> {
    let told = compose.labels("version", "revision")?;
    let wanted = format!("{} {}", compose::VERSION, compose::REVISION);
    ensure!(told == wanted, "the image's labels say `{told}`, not `{wanted}`");
    Ok(())
}

fn size(compose: &Compose, ui: &Ui) -> Result<()> {
    let megabytes = compose.image_size()? as f64 / 1e6;
    ui.step(&format!("image: {megabytes:.1} MB"));
    ensure!(megabytes <= MAX_IMAGE_MB, "the image has {megabytes:.1} MB, more than {MAX_IMAGE_MB}");
    Ok(())
}

fn up(compose: &Compose, more: &[&str], ui: &Ui) -> Result<()> {
    ui.step(&format!("docker compose up {}", more.join(" ")));
    let started = Instant::now();
    // Roles by name: `--wait` would take the end of the one-shot migration for a failure.
    let up = [
        &["--progress", "quiet", "up", "--detach", "--wait", "--wait-timeout", "180"],
        more,
        &["api", "worker"],
    ]
    .concat();
    if compose.run(&up).is_err() {
        interrupts::check()?;
        let _ = compose.run(&["ps", "--all"]);
        let _ = compose.run(&["logs", "--tail=40"]);
        bail!("the compose stack did not become healthy; its logs are above");
    }
    ui.step(&format!("everything is healthy after {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

fn demo(compose: &Compose) -> Result<Demo> {
    let seeded = compose.output(&["run", "--rm", "--no-deps", "-T", "migrate", "seed", "--json"])?;
    Demo::parse(&seeded).with_context(|| format!("no demo account in: {seeded}"))
}

/// Memory before the first request, as `docker stats` shows it.
fn idle(compose: &Compose, ui: &Ui) -> Result<()> {
    for service in ["api", "worker"] {
        let megabytes = compose.memory(&compose.only(service)?)? / 1e6;
        ui.step(&format!("{service}: {megabytes:.1} MB of memory, idle"));
        ensure!(
            megabytes <= MAX_IDLE_MB,
            "{service} takes {megabytes:.1} MB when idle, more than {MAX_IDLE_MB}"
        );
    }
    Ok(())
}

/// What the engine was told of the container, not what the file says.
fn confined(compose: &Compose, service: &str, ui: &Ui) -> Result<()> {
    let id = compose.only(service)?;
    let user = compose.inspect(&id, "{{.Config.User}}")?;
    let uid: u32 = user.split(':').next().unwrap_or_default().parse().unwrap_or(0);
    ensure!(uid != 0, "{service} runs as user `{user}`, which is not a number above 0");
    ensure!(
        compose.inspect(&id, "{{.HostConfig.ReadonlyRootfs}}")? == "true",
        "the file system of {service} can be written"
    );
    let dropped = compose.inspect(&id, "{{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}")?;
    ensure!(
        dropped.contains("ALL") && dropped.contains("no-new-privileges"),
        "{service} keeps privileges: {dropped}"
    );
    ui.step(&format!("{service}: user {uid}, file system read-only, no capabilities"));
    Ok(())
}

/// As PID 1 the binary gets SIGTERM itself, and has nothing to wait for.
fn ends_in_order(compose: &Compose, ui: &Ui) -> Result<()> {
    for service in ["engine-sim", "worker", "api"] {
        let id = compose.only(service)?;
        let took = compose.stop(&id)?;
        let code = compose.inspect(&id, "{{.State.ExitCode}}")?;
        ensure!(code == "0", "{service} ended with {code} on SIGTERM");
        ensure!(took < SHUTDOWN_BUDGET, "{service} took {:.1} s to end", took.as_secs_f64());
        ui.step(&format!("{service}: ended in order {:.1} s after SIGTERM", took.as_secs_f64()));
    }
    for service in ["engine-sim", "worker"] {
        compose.start(&compose.only(service)?)?;
    }
    Ok(())
}

/// From `docker start` to the first 200 of `/readyz`, with the database there.
fn gets_ready(compose: &Compose, ui: &Ui) -> Result<()> {
    let id = compose.only("api")?;
    let mut best = Duration::MAX;
    for _ in 0..STARTS {
        let started = Instant::now();
        compose.start(&id)?;
        // The port may be another one after a start.
        while !compose
            .port(&id)
            .and_then(|port| http::get(port, "/readyz"))
            .is_ok_and(|answer| answer.status == 200)
        {
            interrupts::check()?;
            ensure!(started.elapsed() < START_TIMEOUT, "the API did not become ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        best = best.min(started.elapsed());
        if best < MAX_READY {
            ui.step(&format!("api: ready {:.2} s after its start", best.as_secs_f64()));
            return Ok(());
        }
        if machine::is_busy() {
            let best = best.as_secs_f64();
            ui.step(&format!("api: ready {best:.2} s after its start; other programs have the cores, so that does not count"));
            return Ok(());
        }
        compose.stop(&id)?;
    }
    bail!("the API needs {:.1} s from its start to ready", best.as_secs_f64())
}
