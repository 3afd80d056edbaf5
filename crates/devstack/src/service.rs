//! A running Postgres or Redis, and how it is held, recorded and stopped.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::find::{Found, find, given};
use crate::install::Install;
use crate::process::ProcessId;
use crate::system::System;
use crate::{Lifetime, docker, files, postgres, redis};

/// What a caller wants.
pub struct Spec<'a> {
    /// Directory for the data; created when it is not there.
    pub dir: PathBuf,
    /// Distinguishes containers of several checkouts, see [`crate::project::Project::id`].
    pub id: String,
    /// How long the data lives.
    pub lifetime: Lifetime,
    /// Whether missing programs may be installed.
    pub install: Install,
    /// Where to look.
    pub system: System,
    /// A Postgres to use instead of a private one.
    pub database_url: Option<String>,
    /// A Redis to use instead of a private one.
    pub redis_url: Option<String>,
    /// Told what happens, one short line at a time.
    pub say: &'a dyn Fn(&str),
    /// Asked while waiting; true ends the start with an error.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// Postgres and Redis, running.
#[derive(Debug)]
pub struct Services {
    /// Postgres 14 or newer, with a database `ballast` and a role that may create databases.
    pub postgres: Service,
    /// Redis 6.2 or newer, or Valkey.
    pub redis: Service,
}

impl Services {
    /// Finds or starts both; the crate's documentation tells the order.
    pub fn start(spec: &Spec<'_>) -> Result<Self> {
        let given_postgres =
            spec.database_url.as_deref().map(|url| given("postgres", "DATABASE_URL", url, 5432));
        let given_redis = spec.redis_url.as_deref().map(|url| given("redis", "REDIS_URL", url, 6379));
        let (given_postgres, given_redis) = (given_postgres.transpose()?, given_redis.transpose()?);
        files::ensure_dir(&spec.dir, 0o755, None)?;
        files::check_writable(&spec.dir)?;
        let Found { postgres, redis, docker } = find(spec)?;
        let docker = || docker.as_ref().context("what is neither named nor found comes from Docker");
        let postgres = match (given_postgres, postgres) {
            (Some(service), _) => service,
            (None, Some(binaries)) => postgres::start(spec, binaries)?,
            (None, None) => docker()?.postgres(spec)?,
        };
        let redis = match (given_redis, redis) {
            (Some(service), _) => service,
            (None, Some(program)) => redis::start(spec, &program)?,
            (None, None) => docker()?.redis(spec)?,
        };
        Ok(Self { postgres, redis })
    }

    /// Only the part of [`Services::start`] that may ask and install; fails when nothing can be had.
    pub fn install_missing(spec: &Spec<'_>) -> Result<()> {
        find(spec).map(drop)
    }

    /// Stops both, Redis first. Dropping does the same.
    pub fn stop(&mut self) {
        self.redis.stop();
        self.postgres.stop();
    }
}

/// How a service is held.
#[derive(Debug)]
pub(crate) enum Handle {
    /// Someone else's.
    Given,
    /// Our child.
    Process { child: Child, id: ProcessId, stop: Vec<(Signal, Duration)>, remove: Option<PathBuf> },
    /// A container, held by our child `docker run`.
    Container { child: Child, id: ProcessId, docker: PathBuf, name: String },
    /// Stopped, or left to run on.
    Released,
}

/// One running server. Dropping it stops it.
#[derive(Debug)]
pub struct Service {
    /// `postgres` or `redis`.
    pub name: &'static str,
    /// Where it is from, for people.
    pub origin: String,
    /// Address with the password.
    pub url: String,
    /// TCP port on 127.0.0.1 (or of the named server).
    pub port: u16,
    /// Its log file, if we have one.
    pub log: Option<PathBuf>,
    pub(crate) handle: Handle,
}

impl Service {
    pub(crate) fn new(name: &'static str, origin: String, handle: Handle) -> Self {
        Self { name, origin, url: String::new(), port: 0, log: None, handle }
    }

    pub(crate) fn at(mut self, url: String, port: u16) -> Self {
        self.url = url;
        self.port = port;
        self
    }

    /// What has to be written down to end it from another process; `None` for a server that is not ours.
    pub fn record(&self) -> Option<Record> {
        match &self.handle {
            Handle::Process { id, .. } => {
                Some(Record { name: self.name.to_owned(), id: id.clone(), container: None })
            }
            Handle::Container { id, name, .. } => {
                Some(Record { name: self.name.to_owned(), id: id.clone(), container: Some(name.clone()) })
            }
            Handle::Given | Handle::Released => None,
        }
    }

    /// Its exit status when it has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        match &mut self.handle {
            Handle::Process { child, .. } | Handle::Container { child, .. } => {
                child.try_wait().ok().flatten()
            }
            Handle::Given | Handle::Released => None,
        }
    }

    /// Stops it in order; a server that is not ours is left alone.
    pub fn stop(&mut self) {
        match std::mem::replace(&mut self.handle, Handle::Released) {
            Handle::Process { mut child, id, stop, remove } => {
                id.stop(&stop);
                let _ = child.wait();
                if let Some(dir) = remove {
                    let _ = fs::remove_dir_all(dir);
                }
            }
            Handle::Container { mut child, id, docker, name } => {
                docker::stop_container(&docker, &name);
                id.stop(&[(Signal::SIGTERM, Duration::from_secs(5))]);
                let _ = child.wait();
                docker::remove_container(&docker, &name);
            }
            Handle::Given | Handle::Released => {}
        }
    }

    /// Kills it at once: the second Ctrl-C.
    pub fn kill(&mut self) {
        if let Handle::Process { stop, .. } = &mut self.handle {
            stop.clear();
        }
        self.stop();
    }

    /// Lets it run on after this process; whoever has its [`Record`] ends it.
    pub fn release(mut self) {
        let handle = std::mem::replace(&mut self.handle, Handle::Released);
        if let Handle::Process { mut child, .. } | Handle::Container { mut child, .. } = handle {
            // Should it end while we are there: uncollected it would look alive to a shell's `kill -0`.
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A process or container that a later command can find again and end. As text: `name pid@start [container]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// `postgres`, `redis`, or the caller's own name for a process of its own.
    pub name: String,
    /// The process.
    pub id: ProcessId,
    /// The container it holds.
    pub container: Option<String>,
}

impl Record {
    /// Ends it if it still runs; true if there was anything to end.
    pub fn clean_up(&self, patience: Duration) -> bool {
        if let Some(name) = &self.container
            && let Some(docker) = System::current().program("docker")
        {
            docker::stop_container(&docker, name);
            docker::remove_container(&docker, name);
        }
        if !self.id.is_alive() {
            return false;
        }
        // Postgres waits for its clients on SIGTERM and ends their sessions on SIGINT.
        let first = if self.name == "postgres" { Signal::SIGINT } else { Signal::SIGTERM };
        self.id.stop(&[(first, patience)]);
        true
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.id)?;
        self.container.as_ref().map_or(Ok(()), |name| write!(f, " {name}"))
    }
}

impl FromStr for Record {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let name = words.next().context("empty record")?.to_owned();
        let id = words.next().context("no process in the record")?.parse()?;
        Ok(Self { name, id, container: words.next().map(ToOwned::to_owned) })
    }
}

/// Deletes all data of private servers under `dir`, and the volume of the containers named after `id`.
pub fn delete_data(dir: &Path, id: &str) -> Result<()> {
    if let Some(docker) = System::current().program("docker") {
        docker::remove_volume(&docker, id);
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_a_round_trip() {
        let id = ProcessId::own().unwrap();
        for container in [None, Some("ballast-1-redis".to_owned())] {
            let record = Record { name: "redis".to_owned(), id: id.clone(), container };
            assert_eq!(record.to_string().parse::<Record>().unwrap(), record);
        }
    }
}
