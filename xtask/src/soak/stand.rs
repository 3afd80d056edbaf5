//! The processes of a soak: started, killed, started again.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devstack::Install;
use devstack::ports::free_port;
use devstack::process::{ProcessId, output_within};
use devstack::project::Project;
use nix::sys::signal::Signal;

use super::faults::Victim;
use crate::smoke::Demo;
use crate::throwaway::Throwaway;
use crate::ui::Ui;
use crate::{cargo, http, interrupts};

const START: Duration = Duration::from_secs(30);
/// `SHUTDOWN_BUDGET` in development, and some for a busy machine.
const END: Duration = Duration::from_secs(15);

/// One process of the program. Killed when dropped.
struct Role {
    name: &'static str,
    arguments: Vec<String>,
    port: u16,
    child: Child,
}

impl Role {
    fn id(&self) -> ProcessId {
        ProcessId::of_child(&self.child)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything ends in this order: the roles before what they stand on.
pub(super) struct Stand {
    /// `api-1`, `api-2`, `worker-1`, `worker-2`, `engine`.
    roles: Vec<Role>,
    pub(super) throwaway: Throwaway,
    binary: PathBuf,
    vars: Vec<(String, String)>,
    pub(super) api_ports: Vec<u16>,
    pub(super) demo: Demo,
}

impl Stand {
    /// Builds the program, migrates, seeds, starts everything, waits until it is ready.
    pub(super) fn start(profile: &str, install: Install, ui: &Ui) -> Result<Self> {
        let project = Project::find()?;
        ui.step(&format!("building ballast with the profile {profile}"));
        cargo::run_ok(cargo::cargo(&project).args(["build", "--package", "ballast", "--profile", profile]))?;
        let directory = if profile == "dev" { "debug" } else { profile };
        let binary = cargo::target_dir()?.join(directory).join("ballast");
        let throwaway = Throwaway::durable(&project, install, ui)?;
        let engine = free_port(None)?;
        let vars: Vec<(String, String)> = [
            ("DATABASE_URL", throwaway.services.postgres.url.as_str()),
            ("REDIS_URL", &throwaway.services.redis.url),
            ("ENGINE_URL", &format!("http://127.0.0.1:{engine}/v1")),
            ("HOST", "127.0.0.1"),
            ("LOG_FORMAT", "json"),
            ("LOG_LEVEL", "warn"),
            // A paused worker is taken for dead within the longest pause.
            ("WORKER_LEASE", "6s"),
            ("RATE_LIMIT_GLOBAL", "1000000/1m"),
            ("RATE_LIMIT_REFRESH", "1000000/15m"),
            ("RATE_LIMIT_USER_JOBS", "1000000/1h"),
            ("RATE_LIMIT_AI_REQUESTS", "1000000/1m"),
            ("RATE_LIMIT_AI_TOKENS", "1000000000/1m"),
            ("RATE_LIMIT_AI_TOKENS_DAILY", "1000000000/1d"),
            ("AI_CONCURRENT_STREAMS", "1000"),
            ("API_REPLICAS", "2"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let command = |arguments: &[&str]| {
            let mut command = Command::new(&binary);
            command.args(arguments).env_clear().envs(vars.iter().cloned());
            command
        };
        let migrated = output_within(&mut command(&["migrate", "up"]), START * 2)?;
        let said = String::from_utf8_lossy(&migrated.stderr);
        ensure!(migrated.status.success(), "the migrations failed: {}", said.trim());
        let demo = Demo::seeded(|| command(&["seed", "--json"]))?;
        let mut stand = Self { roles: Vec::new(), throwaway, binary, vars, api_ports: Vec::new(), demo };
        for (name, role) in
            [("api-1", "api"), ("api-2", "api"), ("worker-1", "worker"), ("worker-2", "worker")]
        {
            let port = free_port(None)?;
            stand.spawn(name, &[role.to_owned()], port)?;
            if role == "api" {
                stand.api_ports.push(port);
            }
        }
        stand.spawn("engine", &["engine-sim".to_owned(), "--port".to_owned(), engine.to_string()], engine)?;
        for index in 0..stand.roles.len() {
            stand.ready(index)?;
        }
        Ok(stand)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.throwaway.dir().join(format!("{name}.log"))
    }

    fn child(&self, name: &str, arguments: &[String], port: u16) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(name))?;
        let mut command = Command::new(&self.binary);
        command.args(arguments).env_clear().envs(self.vars.iter().cloned()).env("PORT", port.to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))
    }

    fn spawn(&mut self, name: &'static str, arguments: &[String], port: u16) -> Result<()> {
        let child = self.child(name, arguments, port)?;
        self.roles.push(Role { name, arguments: arguments.to_vec(), port, child });
        Ok(())
    }

    fn ready(&self, index: usize) -> Result<()> {
        let role = &self.roles[index];
        let path = if role.name == "engine" { "/health" } else { "/readyz" };
        let until = Instant::now() + START;
        while !http::get(role.port, path).is_ok_and(|answer| answer.status == 200) {
            interrupts::check()?;
            ensure!(Instant::now() < until, "{} was not ready within {START:?}", role.name);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn index(&self, name: &str) -> usize {
        self.roles.iter().position(|role| role.name == name).expect("all five were started")
    }

    fn victim(&self, victim: Victim) -> usize {
        self.index(match victim {
            Victim::Api => "api-2",
            Victim::Worker => "worker-2",
            Victim::Engine => "engine",
        })
    }

    pub(super) fn process(&self, victim: Victim) -> ProcessId {
        self.roles[self.victim(victim)].id()
    }

    /// The two that live through everything.
    pub(super) fn survivors(&self) -> [(&'static str, u32); 2] {
        ["api-1", "worker-1"].map(|name| (name, self.roles[self.index(name)].child.id()))
    }

    /// `kill -9`; back after so long.
    pub(super) fn kill(&mut self, victim: Victim, time: Duration) -> Result<()> {
        let index = self.victim(victim);
        self.roles[index].child.kill()?;
        self.roles[index].child.wait()?;
        self.start_again(index, time)
    }

    /// SIGTERM, and an end in order; back after so long.
    pub(super) fn terminate(&mut self, victim: Victim, time: Duration) -> Result<()> {
        let index = self.victim(victim);
        self.ends_in_order(index)?;
        self.start_again(index, time)
    }

    fn ends_in_order(&mut self, index: usize) -> Result<()> {
        let role = &mut self.roles[index];
        role.id().signal(Signal::SIGTERM);
        let asked = Instant::now();
        loop {
            if let Some(status) = role.child.try_wait()? {
                ensure!(status.success(), "{} ended with {status} on SIGTERM", role.name);
                return Ok(());
            }
            ensure!(asked.elapsed() < END, "{} did not end within {END:?}", role.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn start_again(&mut self, index: usize, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        let role = &self.roles[index];
        let child = self.child(role.name, &role.arguments, role.port)?;
        self.roles[index].child = child;
        self.ready(index)
    }

    /// Nobody died by itself.
    pub(super) fn alive(&mut self) -> Result<()> {
        for role in &mut self.roles {
            if let Some(status) = role.child.try_wait()? {
                bail!("{} ended by itself: {status}", role.name);
            }
        }
        Ok(())
    }

    /// Every role, in order.
    pub(super) fn end(&mut self) -> Result<()> {
        (0..self.roles.len()).try_for_each(|index| self.ends_in_order(index))
    }

    /// One value from the database.
    pub(super) fn sql(&self, query: &str) -> Result<String> {
        let program = devstack::System::current().program("psql").context("there is no psql here")?;
        let mut command = Command::new(program);
        command.arg(&self.throwaway.services.postgres.url);
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", query]);
        let out = output_within(&mut command, Duration::from_secs(60))?;
        ensure!(out.status.success(), "psql: {}", String::from_utf8_lossy(&out.stderr).trim());
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Lines of the logs that tell of a panic.
    pub(super) fn panics(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for role in &self.roles {
            let text = fs::read_to_string(self.log(role.name)).context("a log is not there")?;
            let lines = text.lines().filter(|line| line.contains("panicked"));
            found.extend(lines.map(|line| format!("{}: {line}", role.name)));
        }
        Ok(found)
    }

    /// What the roles said, where it outlives the stand.
    pub(super) fn keep_logs(&self, ui: &Ui) {
        let kept = std::env::temp_dir().join(format!("ballast-soak-{}", std::process::id()));
        let copy = |name: &str, kept: &Path| -> std::io::Result<u64> {
            fs::create_dir_all(kept)?;
            let mut to = File::create(kept.join(format!("{name}.log")))?;
            std::io::copy(&mut File::open(self.log(name))?, &mut to)
        };
        if self.roles.iter().all(|role| copy(role.name, &kept).is_ok()) {
            ui.step(&format!("the logs are in {}", kept.display()));
        }
    }
}
