//! The compose stack under a name of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;
use devstack::project::Project;
use devstack::{System, Unavailable, ports};

use crate::cargo;

const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than every `stop_grace_period`: an end that needs the kill is noticed, not waited for in vain.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// What the build is told, and the image's labels have to say.
pub(super) const VERSION: &str = "0.0.0-check";
pub(super) const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// See the module.
pub(super) struct Compose {
    docker: PathBuf,
    root: PathBuf,
    project: String,
    profile: String,
    env_file: Option<&'static str>,
    ports: Vec<(&'static str, String)>,
}

impl Compose {
    pub(super) fn find(project: &Project, profile: &str) -> Result<Self> {
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
        let mut compose = Self {
            docker,
            root: project.root().to_owned(),
            project: format!("ballast-check-{}", project.id()),
            profile: profile.to_owned(),
            env_file: None,
            ports: Vec::new(),
        };
        compose.use_ports(1)?;
        Ok(compose)
    }

    pub(super) fn profile(&self) -> &str {
        &self.profile
    }

    pub(super) fn image(&self) -> String {
        format!("{}:latest", self.project)
    }

    /// What the services read as `.env`; `None` is a clone without one, whatever the person here has.
    pub(super) fn use_env_file(&mut self, file: Option<&'static str>) {
        self.env_file = file;
    }

    /// Ports that nobody has, with so many in a row for the API.
    pub(super) fn use_ports(&mut self, replicas: u16) -> Result<()> {
        let mut first = ports::free_port(None)?;
        for _ in 0..100 {
            if (first..first.saturating_add(replicas)).all(ports::is_free) {
                break;
            }
            first = ports::free_port(None)?;
        }
        let api = if replicas == 1 { first.to_string() } else { format!("{first}-{}", first + replicas - 1) };
        self.ports = vec![("API_PORT", api)];
        for name in ["POSTGRES_PORT", "REDIS_PORT"] {
            self.ports.push((name, ports::free_port(None)?.to_string()));
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.docker);
        let env_file = self.env_file.unwrap_or("/dev/null");
        command.args(["compose", "--project-name", &self.project, "--env-file", env_file]);
        command.current_dir(&self.root).envs(self.ports.iter().map(|(name, port)| (name, port)));
        command.env("PROFILE", &self.profile).env("BALLAST_IMAGE", self.image());
        command.env("VERSION", VERSION).env("REVISION", REVISION);
        command.env("BALLAST_ENV_FILE", self.env_file.unwrap_or("there/is/none"));
        // A shell that is set up for something else must not change what is checked.
        for name in ["ENGINE_URL", "COMPOSE_FILE", "COMPOSE_PROFILES"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a compose command in sight.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<()> {
        cargo::run_ok(self.command().args(arguments))
    }

    pub(super) fn output(&self, arguments: &[&str]) -> Result<String> {
        output(self.command().args(arguments))
    }

    pub(super) fn docker(&self, arguments: &[&str]) -> Result<String> {
        output(Command::new(&self.docker).args(arguments))
    }

    pub(super) fn image_size(&self) -> Result<u64> {
        let size = self.docker(&["image", "inspect", "--format", "{{.Size}}", &self.image()])?;
        size.parse().context("no image size")
    }

    /// Two labels of the image, whose names begin with `org.opencontainers.image.`.
    pub(super) fn labels(&self, one: &str, two: &str) -> Result<String> {
        let label = |name: &str| format!("{{{{index .Config.Labels \"org.opencontainers.image.{name}\"}}}}");
        let format = format!("{} {}", label(one), label(two));
        self.docker(&["image", "inspect", "--format", &format, &self.image()])
    }

    pub(super) fn inspect(&self, id: &str, format: &str) -> Result<String> {
        self.docker(&["container", "inspect", "--format", format, id])
    }

    /// The containers of a service, stopped ones included.
    pub(super) fn containers(&self, service: &str) -> Result<Vec<String>> {
        let ids = self.output(&["ps", "--all", "--quiet", service])?;
        Ok(ids.lines().map(ToOwned::to_owned).collect())
    }

    pub(super) fn only(&self, service: &str) -> Result<String> {
        let mut ids = self.containers(service)?;
        ensure!(ids.len() == 1, "{} containers of {service}", ids.len());
        Ok(ids.remove(0))
    }

    /// Where the API of this container is on this machine.
    pub(super) fn port(&self, id: &str) -> Result<u16> {
        let address = self.docker(&["port", id, "8080/tcp"])?;
        let first = address.lines().next().and_then(|line| line.rsplit_once(':'));
        let port = first.and_then(|(_, port)| port.parse().ok());
        port.with_context(|| format!("the API's port is not published: {address}"))
    }

    /// Bytes in use.
    pub(super) fn memory(&self, id: &str) -> Result<f64> {
        let usage = self.docker(&["stats", "--no-stream", "--format", "{{.MemUsage}}", id])?;
        bytes(&usage).with_context(|| format!("docker stats says: {usage}"))
    }

    /// SIGTERM, and how long the container took to end.
    pub(super) fn stop(&self, id: &str) -> Result<Duration> {
        let started = Instant::now();
        let mut stop = Command::new(&self.docker);
        output_within(stop.args(["stop", "--time", "100", id]), STOP_TIMEOUT)?;
        Ok(started.elapsed())
    }

    pub(super) fn start(&self, id: &str) -> Result<()> {
        self.docker(&["start", id]).map(drop)
    }

    /// Removes everything that bears our name.
    pub(super) fn down(&self) {
        let mut down = self.command();
        down.args(["down", "--volumes", "--remove-orphans", "--timeout", "20"]);
        let _ = output_within(&mut down, STOP_TIMEOUT);
        // The layers stay in the build cache.
        let _ = self.docker(&["image", "rm", &self.image()]);
    }

    /// Where the checkout is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The name that everything of this run bears.
    pub(super) fn project(&self) -> &str {
        &self.project
    }

    pub(super) fn how_to_end(&self) -> String {
        format!("docker compose --project-name {} down --volumes", self.project)
    }
}

/// The first number of `21.5MiB / 512MiB`.
fn bytes(usage: &str) -> Option<f64> {
    let used = usage.split('/').next()?.trim();
    let (number, unit) = used.split_at(used.find(|c: char| c.is_ascii_alphabetic())?);
    let unit = match unit {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number.trim().parse::<f64>().ok()? * unit)
}

fn output(command: &mut Command) -> Result<String> {
    let out = output_within(command, CALL_TIMEOUT)?;
    if !out.status.success() {
        bail!("`{}` failed: {}", cargo::shown(command), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_docker_writes_it() {
        assert_eq!(bytes("21.5MiB / 512MiB"), Some(21.5 * 1024.0 * 1024.0));
        assert_eq!(bytes("812KiB / 1.9GiB"), Some(812.0 * 1024.0));
        assert_eq!(bytes("--"), None);
    }
}
