//! Starts everything in order, watches over it, and stops everything in the opposite order.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use devstack::Services;
use devstack::process::output_within;

use super::hints::Hints;
use super::ports::Ports;
use super::role::Role;
use super::state::{Phase, State};
use super::watch::Watch;
use super::{Args, Place};
use crate::interrupts::{self, Interrupted};
use crate::smoke::Demo;
use crate::ui::Ui;
use crate::{cargo, http, ui};

const READY_TIMEOUT: Duration = Duration::from_secs(90);
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(600);
const SEED_TIMEOUT: Duration = Duration::from_secs(60);
/// More than the drain budget of API and worker in development.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// A stack that this process runs.
#[derive(Debug)]
pub(super) struct Supervisor<'a> {
    args: &'a Args,
    place: &'a Place,
    ui: Ui,
    logs: Option<PathBuf>,
    services: Option<Services>,
    engine: Option<Role>,
    api: Option<Role>,
    worker: Option<Role>,
    ports: Option<Ports>,
    exports: Vec<(String, String)>,
}

/// Why a stack that ran has to stop.
enum End {
    Asked,
    Died { name: &'static str, status: ExitStatus },
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(args: &'a Args, place: &'a Place) -> Self {
        let logs = args.supervised.then(|| place.logs());
        let (services, engine, api, worker, ports) = (None, None, None, None, None);
        Self { args, place, ui: Ui::new(), logs, services, engine, api, worker, ports, exports: Vec::new() }
    }

    pub(super) fn run(mut self) -> Result<ExitCode> {
        let outcome = self.start().and_then(|binary| self.supervise(&binary));
        if let Ok(End::Died { name, status }) = &outcome {
            self.ui.warn(&format!("{name} ended by itself ({status}): stopping the stack"));
        }
        self.shutdown();
        match outcome {
            Ok(End::Asked) if interrupts::killing() => Ok(ExitCode::from(130)),
            Ok(End::Asked) => Ok(ExitCode::SUCCESS),
            Ok(End::Died { status, .. }) => Ok(ExitCode::from(code_of(status))),
            Err(error) => Err(error),
        }
    }

    /// Everything up to "ready"; gives the program that runs.
    fn start(&mut self) -> Result<PathBuf> {
        self.note(Phase::Starting)?;
        self.start_services()?;
        let binary = match &self.args.binary {
            Some(binary) => binary.clone(),
            None => build(self.place, &self.ui)?,
        };
        let ports = Ports::pick(&self.ui)?;
        self.ports = Some(ports);
        self.collect_exports(ports);
        self.migrate(&binary)?;
        let demo = self.seed(&binary)?;
        if !set("ENGINE_URL") {
            let mut command = self.command(&binary, &["engine-sim", "--port", &ports.engine.to_string()]);
            // Its own listening address is not the API's.
            command.env_remove("PORT").env_remove("ADMIN_PORT");
            self.engine = Some(self.role("engine", ports.engine, 2, command)?);
        }
        self.start_api_and_worker(&binary, ports)?;
        self.wait_ready()?;
        let demo =
            [("DEMO_EMAIL", demo.email), ("DEMO_PASSWORD", demo.password), ("DEMO_API_KEY", demo.api_key)];
        self.exports.extend(demo.map(|(name, value)| (name.to_owned(), value)));
        self.ui.step("ready");
        let hints =
            Hints { exports: &self.exports, own_engine: self.engine.is_some(), logs: self.logs.as_deref() };
        if self.logs.is_some() {
            // Whoever waits for the note shows what was said until then.
            hints.print(&self.ui);
            self.note(Phase::Ready)?;
        } else {
            self.note(Phase::Ready)?;
            hints.print(&self.ui);
        }
        Ok(binary)
    }

    fn start_services(&mut self) -> Result<()> {
        let ui = self.ui.clone();
        let say = move |line: &str| ui.step(line);
        let services = Services::start(&self.place.spec(self.args, &say))?;
        for service in [&services.postgres, &services.redis] {
            self.ui.step(&format!("{} on port {}", service.origin, service.port));
        }
        self.services = Some(services);
        self.note(Phase::Starting)
    }

    fn collect_exports(&mut self, ports: Ports) {
        let engine = match std::env::var("ENGINE_URL") {
            Ok(url) if !url.is_empty() => url,
            _ => format!("http://127.0.0.1:{}/v1", ports.engine),
        };
        let services = self.services.as_ref().expect("services are started first");
        let pairs = [
            ("API_URL", format!("http://127.0.0.1:{}", ports.api)),
            ("ADMIN_URL", format!("http://127.0.0.1:{}", ports.admin)),
            ("WORKER_ADMIN_URL", format!("http://127.0.0.1:{}", ports.worker)),
            ("ENGINE_URL", engine),
            ("DATABASE_URL", services.postgres.url.clone()),
            ("REDIS_URL", services.redis.url.clone()),
        ];
        self.exports = pairs.map(|(name, value)| (name.to_owned(), value)).into();
    }

    /// A command of the program with the stack's environment. What the user has set passes through, except for the
    /// addresses that we hand out ourselves.
    fn command(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.args(arguments).current_dir(self.place.project.root());
        for name in ["DATABASE_URL", "REDIS_URL", "ENGINE_URL"] {
            if let Some((_, value)) = self.exports.iter().find(|(key, _)| key == name) {
                command.env(name, value);
            }
        }
        // The demo account's password is public: nothing listens beyond this machine unless asked to.
        let mut defaults = vec![("APP_ENV", "development"), ("HOST", "127.0.0.1")];
        if self.logs.is_none() && ui::is_terminal() {
            defaults.push(("LOG_FORMAT", "pretty"));
        }
        for (name, value) in defaults {
            if !set(name) {
                command.env(name, value);
            }
        }
        command
    }

    fn role(&self, name: &'static str, port: u16, color: usize, command: Command) -> Result<Role> {
        let role = Role::start(name, port, color, command, self.logs.as_deref(), &self.ui)?;
        self.note_with(Phase::Starting, Some(&role))?;
        Ok(role)
    }

    fn migrate(&self, binary: &Path) -> Result<()> {
        self.ui.step("applying migrations");
        let mut task = self.role("migrate", 0, 3, self.command(binary, &["migrate", "up"]))?;
        let deadline = Instant::now() + MIGRATE_TIMEOUT;
        loop {
            if let Some(status) = task.exited() {
                if status.success() {
                    return Ok(());
                }
                bail!("`ballast migrate up` failed ({status}){}", self.log_tail("migrate"));
            }
            interrupts::check()?;
            if Instant::now() > deadline {
                bail!("`ballast migrate up` did not finish within {} s", MIGRATE_TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn seed(&self, binary: &Path) -> Result<Demo> {
        self.ui.step("seeding the demo account");
        let out = output_within(&mut self.command(binary, &["seed", "--json"]), SEED_TIMEOUT)?;
        let text = String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            bail!("`ballast seed` failed ({})\n{}{text}", out.status, String::from_utf8_lossy(&out.stderr));
        }
        Demo::parse(&text).with_context(|| format!("`ballast seed --json` said something unexpected: {text}"))
    }

    fn start_api_and_worker(&mut self, binary: &Path, ports: Ports) -> Result<()> {
        let mut api = self.command(binary, &["api"]);
        api.env("PORT", ports.api.to_string()).env("ADMIN_PORT", ports.admin.to_string());
        self.api = Some(self.role("api", ports.api, 0, api)?);
        let mut worker = self.command(binary, &["worker"]);
        worker.env("PORT", ports.worker.to_string()).env_remove("ADMIN_PORT");
        self.worker = Some(self.role("worker", ports.worker, 1, worker)?);
        self.note(Phase::Starting)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        let mut told = Instant::now();
        loop {
            let (mut waiting, mut ended) = (Vec::new(), None);
            for role in [&mut self.engine, &mut self.api, &mut self.worker].into_iter().flatten() {
                if let Some(status) = role.exited() {
                    ended = Some((role.name, status));
                    break;
                }
                let ready = if role.name == "engine" {
                    // It has no readiness of its own: any answer will do.
                    http::get(role.port, "/").map(|_| ())
                } else {
                    match http::get(role.port, "/readyz") {
                        Ok(answer) if answer.status == 200 => Ok(()),
                        Ok(answer) => Err(anyhow!("/readyz says {}: {}", answer.status, answer.body.trim())),
                        Err(error) => Err(error),
                    }
                };
                if let Err(reason) = ready {
                    waiting.push(format!("{}: {reason:#}", role.name));
                }
            }
            if let Some((name, status)) = ended {
                bail!("{name} ended while it was starting ({status}){}", self.log_tail(name));
            }
            if waiting.is_empty() {
                return Ok(());
            }
            interrupts::check()?;
            if started.elapsed() > READY_TIMEOUT {
                bail!("not ready after {} s\n{}", READY_TIMEOUT.as_secs(), waiting.join("\n"));
            }
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                self.ui.step(&format!("waiting for {}", waiting.join("; ")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Until somebody wants the end, or something ends by itself.
    fn supervise(&mut self, binary: &Path) -> Result<End> {
        let mut watch = self.args.watch.then(|| Watch::new(self.place.project.root()));
        if watch.is_some() {
            self.ui.step("watching crates/, migrations/ and Cargo.toml");
        }
        loop {
            if interrupts::stopping() {
                return Ok(End::Asked);
            }
            if let Some(services) = &mut self.services {
                for service in [&mut services.postgres, &mut services.redis] {
                    if let Some(status) = service.exited() {
                        return Ok(End::Died { name: service.name, status });
                    }
                }
            }
            for role in [&mut self.engine, &mut self.api, &mut self.worker] {
                let Some(status) = role.as_mut().and_then(Role::exited) else { continue };
                let name = role.take().expect("it was just looked at").name;
                if watch.is_none() {
                    return Ok(End::Died { name, status });
                }
                // Someone is editing: the next version may live longer.
                self.ui.warn(&format!(
                    "{name} ended by itself ({status}); it starts again after the next change"
                ));
            }
            if watch.as_mut().is_some_and(Watch::changed) {
                match self.reload(binary) {
                    Err(error) if error.is::<Interrupted>() => return Ok(End::Asked),
                    Err(error) => self.ui.warn(&format!("{error:#}")),
                    Ok(()) => {}
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// After a change: build, migrate, restart. Whatever fails leaves running what runs.
    fn reload(&mut self, binary: &Path) -> Result<()> {
        self.ui.step("something changed: building");
        let before = modified(binary);
        let status = cargo::run(&mut build_command(self.place))?;
        if !status.success() {
            self.ui.warn("the build failed: the previous version keeps running");
            return Ok(());
        }
        if modified(binary) == before {
            self.ui.step("the program is the same: nothing to restart");
            return Ok(());
        }
        self.migrate(binary).context("the previous version keeps running")?;
        let ports = self.ports.expect("ports are picked before anything can be reloaded");
        stop_together([self.api.take(), self.worker.take()]);
        self.start_api_and_worker(binary, ports)?;
        self.wait_ready()?;
        self.note(Phase::Ready)?;
        self.ui.step("ready again");
        Ok(())
    }

    /// API and worker drain while the engine, Redis and Postgres are still there for them.
    fn shutdown(&mut self) {
        // Without the note another command would at worst call a stopping stack ready.
        let _ = self.note(Phase::Stopping);
        if self.api.is_some() || self.worker.is_some() {
            self.ui.step("draining API and worker (Ctrl-C again: stop at once)");
            stop_together([self.api.take(), self.worker.take()]);
        }
        if let Some(engine) = self.engine.take() {
            engine.ask_to_stop();
            engine.wait(ENGINE_TIMEOUT);
        }
        if let Some(services) = &mut self.services {
            for service in [&mut services.redis, &mut services.postgres] {
                if interrupts::killing() { service.kill() } else { service.stop() }
            }
        }
        self.services = None;
        let _ = State::remove(&self.place.dir);
        self.ui.step("stopped");
    }

    fn note(&self, phase: Phase) -> Result<()> {
        self.note_with(phase, None)
    }

    /// Writes down what runs. A process is written down before the next one starts.
    fn note_with(&self, phase: Phase, starting: Option<&Role>) -> Result<()> {
        let mut state = State::new(self.logs.clone())?;
        state.phase = phase;
        state.exports.clone_from(&self.exports);
        if let Some(services) = &self.services {
            state.records.extend(
                [&services.postgres, &services.redis].into_iter().filter_map(devstack::Service::record),
            );
        }
        let roles = [self.engine.as_ref(), self.api.as_ref(), self.worker.as_ref(), starting];
        state.records.extend(roles.into_iter().flatten().map(Role::record));
        state.write(&self.place.dir)
    }

    fn log_tail(&self, name: &str) -> String {
        let Some(path) = self.logs.as_ref().map(|dir| dir.join(format!("{name}.log"))) else {
            return String::new();
        };
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("; the end of {}:\n{}", path.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
    }
}

/// Both drain at the same time.
fn stop_together(roles: [Option<Role>; 2]) {
    for role in roles.iter().flatten() {
        role.ask_to_stop();
    }
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    for role in roles.into_iter().flatten() {
        role.wait(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Builds the program; cargo's own output shows the progress.
pub(super) fn build(place: &Place, ui: &Ui) -> Result<PathBuf> {
    let binary = cargo::output_dir()?.join("ballast");
    let hint = if binary.exists() { "" } else { " (the first time takes 2 to 5 minutes)" };
    ui.step(&format!("building ballast{hint}"));
    cargo::run_ok(&mut build_command(place))?;
    if !binary.exists() {
        bail!("cargo built ballast, but not as {}", binary.display());
    }
    Ok(binary)
}

fn build_command(place: &Place) -> Command {
    let mut command = cargo::cargo(&place.project);
    command.args(["build", "--package", "ballast", "--bin", "ballast"]);
    command
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// As a shell reports it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    // A part that ended without an error is still a stack that did not stay up.
    if code == 0 { 1 } else { u8::try_from(code).unwrap_or(1) }
}
