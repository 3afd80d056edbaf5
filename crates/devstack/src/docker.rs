//! Servers in containers, for machines that have Docker and no server programs.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Lifetime;
use crate::process::{ProcessId, output_within};
use crate::service::{Handle, Service, Spec};
use crate::{files, ports};

const POSTGRES_IMAGE: &str = "postgres:17";
const REDIS_IMAGE: &str = "redis:8";
/// An image may have to be fetched first.
const FETCH_TIMEOUT: Duration = Duration::from_secs(600);
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// A Docker client whose daemon answers.
pub(crate) struct Docker {
    program: PathBuf,
}

impl Docker {
    /// The client, or why there is none to use.
    pub(crate) fn find(spec: &Spec<'_>) -> Result<Self, String> {
        let program = spec.system.program("docker").ok_or("there is no docker command")?;
        let mut command = Command::new(&program);
        command.args(["version", "--format", "{{.Server.Version}}"]);
        match output_within(&mut command, Duration::from_secs(5)) {
            Ok(out) if out.status.success() => Ok(Self { program }),
            _ => Err("no Docker daemon answers".to_owned()),
        }
    }

    pub(crate) fn postgres(&self, spec: &Spec<'_>) -> Result<Service> {
        let password = files::password(&spec.dir.join("docker-postgres-password"), None)?;
        let volume = match spec.lifetime {
            Lifetime::Keep => format!("--volume={}:/var/lib/postgresql/data", volume_name(&spec.id)),
            Lifetime::Throwaway => "--tmpfs=/var/lib/postgresql/data".to_owned(),
        };
        let mut inside: Vec<String> = vec!["postgres".to_owned()];
        inside.extend(
            crate::postgres::settings(spec.lifetime).iter().flat_map(|s| ["-c".to_owned(), (*s).to_owned()]),
        );
        let options = [
            volume.as_str(),
            "--env=POSTGRES_USER=ballast",
            "--env=POSTGRES_DB=ballast",
            "--env=POSTGRES_PASSWORD",
        ];
        let (service, port, name) =
            self.run(spec, "postgres", POSTGRES_IMAGE, 5432, &options, &inside, &password)?;
        // The volume may be older than the password file; on the container's own socket no password is asked.
        let script = format!("ALTER ROLE \"ballast\" PASSWORD '{password}'");
        self.inside(
            &name,
            &["psql", "--quiet", "--username=ballast", "--dbname=ballast", "--command", &script],
        )
        .context("cannot set the database password")?;
        Ok(service.at(format!("postgres://ballast:{password}@127.0.0.1:{port}/ballast"), port))
    }

    pub(crate) fn redis(&self, spec: &Spec<'_>) -> Result<Service> {
        let password = files::password(&spec.dir.join("docker-redis-password"), None)?;
        // Through the environment: arguments of a process can be read by every user of the machine.
        let inside =
            ["sh", "-c", "exec redis-server --save '' --appendonly no --requirepass \"$POSTGRES_PASSWORD\""];
        let inside: Vec<String> = inside.iter().map(ToString::to_string).collect();
        let (service, port, _) =
            self.run(spec, "redis", REDIS_IMAGE, 6379, &["--env=POSTGRES_PASSWORD"], &inside, &password)?;
        Ok(service.at(format!("redis://:{password}@127.0.0.1:{port}/0"), port))
    }

    #[expect(clippy::too_many_arguments, reason = "one caller per service, a struct would only rename them")]
    fn run(
        &self,
        spec: &Spec<'_>,
        service: &'static str,
        image: &str,
        inner_port: u16,
        options: &[&str],
        inside: &[String],
        password: &str,
    ) -> Result<(Service, u16, String)> {
        let name = format!("ballast-{}-{service}", spec.id);
        self.fetch(image, spec)?;
        remove_container(&self.program, &name);
        let port = ports::free_port(None)?;
        let log = spec.dir.join(format!("{service}.log"));
        let out = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .context("cannot write the log")?;
        let mut command = Command::new(&self.program);
        command
            .args(["run", "--rm", "--name", &name, &format!("--publish=127.0.0.1:{port}:{inner_port}")])
            .args(options)
            .arg(image)
            .args(inside)
            .env("POSTGRES_PASSWORD", password)
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot write the log")?)
            .stderr(out);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().context("cannot start docker")?;
        let id = ProcessId::of_child(&child);
        let handle = Handle::Container { child, id, docker: self.program.clone(), name: name.clone() };
        let mut started = Service::new(service, format!("container {name} ({image})"), handle);
        started.log = Some(log.clone());
        let probe: &[&str] = match service {
            "postgres" => &["pg_isready", "--quiet", "--host=127.0.0.1", "--username=ballast"],
            _ => &["sh", "-c", "REDISCLI_AUTH=\"$POSTGRES_PASSWORD\" redis-cli ping | grep -q PONG"],
        };
        let deadline = Instant::now() + READY_TIMEOUT;
        while self.inside(&name, probe).is_err() {
            if started.exited().is_some() || Instant::now() > deadline || (spec.cancelled)() {
                bail!("the {service} container did not become ready:\n{}", files::tail(&log, 0, 10));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok((started, port, name))
    }

    fn fetch(&self, image: &str, spec: &Spec<'_>) -> Result<()> {
        let mut look = Command::new(&self.program);
        if output_within(look.args(["image", "inspect", image]), CALL_TIMEOUT)?.status.success() {
            return Ok(());
        }
        (spec.say)(&format!("fetching the image {image}"));
        let mut pull = Command::new(&self.program);
        let out = output_within(pull.args(["pull", "--quiet", image]), FETCH_TIMEOUT)?;
        if !out.status.success() {
            bail!("docker cannot fetch {image}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    fn inside(&self, container: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        let out = output_within(command.args(["exec", container]).args(arguments), CALL_TIMEOUT)?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }
}

/// Name of the volume that keeps the database of `cargo stack`.
pub(crate) fn volume_name(id: &str) -> String {
    format!("ballast-{id}-postgres")
}

/// Stops a container with the signal its image asks for; it removes itself.
pub(crate) fn stop_container(docker: &PathBuf, name: &str) {
    let mut command = Command::new(docker);
    let _ = output_within(command.args(["stop", "--time=20", name]), Duration::from_secs(40));
}

pub(crate) fn remove_container(docker: &PathBuf, name: &str) {
    let mut command = Command::new(docker);
    let _ = output_within(command.args(["rm", "--force", name]), CALL_TIMEOUT);
}

/// Deletes the volume of `cargo stack`, where there is one.
pub(crate) fn remove_volume(docker: &PathBuf, id: &str) {
    let mut command = Command::new(docker);
    let _ = output_within(command.args(["volume", "rm", "--force", &volume_name(id)]), CALL_TIMEOUT);
}
