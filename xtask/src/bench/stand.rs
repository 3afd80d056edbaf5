//! What a benchmark of the API runs on: the API and a simulated engine that answers at once, on throw-away servers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use devstack::Install;
use devstack::project::Project;

use crate::smoke::Demo;
use crate::throwaway::Throwaway;
use crate::ui::Ui;
use crate::{cargo, http};

const START: Duration = Duration::from_secs(20);

/// A child that is ended with this command.
pub(super) struct Role(Child);

impl Role {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything ends in this order.
pub(super) struct Stand {
    pub(super) api: Role,
    /// Where the built programs are, and what they are started with.
    programs: PathBuf,
    vars: Vec<(&'static str, String)>,
    _engine: Role,
    _throwaway: Throwaway,
    pub(super) api_port: u16,
    pub(super) engine_port: u16,
    pub(super) demo: Demo,
}

impl Stand {
    /// Builds ballast, migrates, seeds, and starts an API that is ready.
    pub(super) fn start(profile: &str, ui: &Ui) -> Result<Self> {
        let project = Project::find()?;
        ui.step(&format!("building ballast with the profile {profile}"));
        let mut build = cargo::cargo(&project);
        cargo::run_ok(build.args(["build", "--package", "ballast", "--profile", profile]))?;
        // Cargo's one profile whose directory has another name.
        let dir = if profile == "dev" { "debug" } else { profile };
        let programs = cargo::target_dir()?.join(dir);
        let binary = programs.join("ballast");
        let throwaway = Throwaway::start(&project, Install::Ask, ui)?;
        let (engine_port, api_port) = (devstack::ports::free_port(None)?, devstack::ports::free_port(None)?);
        let engine_url = format!("http://127.0.0.1:{engine_port}/v1");
        let vars = [
            ("DATABASE_URL", throwaway.services.postgres.url.as_str()),
            ("REDIS_URL", throwaway.services.redis.url.as_str()),
            ("ENGINE_URL", &engine_url),
            ("HOST", "127.0.0.1"),
            ("PORT", &api_port.to_string()),
            ("LOG_FORMAT", "json"),
            // So that a load can come from many addresses: the shield in front of the limits has no variable.
            ("TRUSTED_PROXY", "127.0.0.1/32"),
            // The limits are looked at for every request, and must not end the benchmark.
            ("RATE_LIMIT_GLOBAL", "1000000/1m"),
            ("RATE_LIMIT_AI_REQUESTS", "1000000/1m"),
            ("RATE_LIMIT_AI_TOKENS", "1000000000/1m"),
            ("RATE_LIMIT_AI_TOKENS_DAILY", "1000000000/1d"),
            ("AI_CONCURRENT_STREAMS", "100000"),
            // Idle streams are to stay.
            ("ENGINE_IDLE_TIMEOUT", "10m"),
            ("ENGINE_STREAM_TIMEOUT", "15m"),
        ];
        let command = |arguments: &[&str]| {
            let mut command = Command::new(&binary);
            command.args(arguments).env_clear().envs(vars.iter().copied()).stderr(Stdio::null());
            command
        };
        let start = |arguments: &[&str]| spawn(command(arguments).stdout(Stdio::null()), &binary);
        let migrated = command(&["migrate", "up"]).stdout(Stdio::null()).status()?;
        ensure!(migrated.success(), "the migrations failed");
        let seeded = command(&["seed", "--json"]).output()?;
        let demo =
            Demo::parse(&String::from_utf8_lossy(&seeded.stdout)).context("seed printed no account")?;
        let port = engine_port.to_string();
        let at_once = ["--first-token-ms", "0", "--token-interval-ms", "0", "--tokens", "20"];
        let engine = start(&[&["engine-sim", "--port", &port], at_once.as_slice()].concat())?;
        let api = start(&["api"])?;
        wait_ready(api_port)?;
        let vars = vars.map(|(name, value)| (name, value.to_owned())).to_vec();
        Ok(Self { api, programs, vars, _engine: engine, _throwaway: throwaway, api_port, engine_port, demo })
    }

    /// Builds an example of ballast, and starts it beside the API with the same settings, on a port of its own.
    pub(super) fn start_example(&self, name: &str, profile: &str) -> Result<(Role, u16)> {
        let mut build = cargo::cargo(&Project::find()?);
        build.args(["build", "--package", "ballast", "--example", name, "--profile", profile]);
        cargo::run_ok(&mut build)?;
        let (program, port) = (self.programs.join("examples").join(name), devstack::ports::free_port(None)?);
        let mut command = Command::new(&program);
        let vars = self.vars.iter().map(|(name, value)| (*name, value.as_str()));
        command.env_clear().envs(vars).env("PORT", port.to_string());
        let role = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()), &program)?;
        wait_ready(port)?;
        Ok((role, port))
    }
}

fn spawn(command: &mut Command, binary: &Path) -> Result<Role> {
    Ok(Role(command.spawn().with_context(|| format!("cannot start {}", binary.display()))?))
}

fn wait_ready(port: u16) -> Result<()> {
    let until = Instant::now() + START;
    while !http::get(port, "/readyz").is_ok_and(|answer| answer.status == 200) {
        ensure!(Instant::now() < until, "the API was not ready within {START:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
