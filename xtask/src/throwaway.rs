//! Postgres and Redis for one command: empty, fast, gone afterwards, also when the command was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::process::ProcessId;
use devstack::project::Project;
use devstack::{Install, Lifetime, Record, Service, Services, Spec, System};

use crate::interrupts;
use crate::ui::Ui;

/// The servers; stopped and deleted when dropped.
#[derive(Debug)]
pub(crate) struct Throwaway {
    dir: PathBuf,
    id: String,
    lifetime: Lifetime,
    install: Install,
    pub(crate) services: Services,
}

impl Throwaway {
    /// Starts a pair; about a second.
    pub(crate) fn start(project: &Project, install: Install, ui: &Ui) -> Result<Self> {
        Self::with(Lifetime::Throwaway, project, install, ui)
    }

    /// Starts a pair that writes to the disk as in production; its data goes all the same.
    pub(crate) fn durable(project: &Project, install: Install, ui: &Ui) -> Result<Self> {
        Self::with(Lifetime::Keep, project, install, ui)
    }

    fn with(lifetime: Lifetime, project: &Project, install: Install, ui: &Ui) -> Result<Self> {
        let base = project.data_dir()?.join("throwaway");
        fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
        clean_up(&base);
        let dir = base.join(std::process::id().to_string());
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let owner = ProcessId::own().context("this process is not listed among the processes")?;
        devstack::write_atomic(&dir.join("owner"), &owner.to_string())?;
        let id = format!("{}-{}", project.id(), std::process::id());
        let services =
            Services::start(&spec(&dir, &id, lifetime, install, (None, None), &|line| ui.step(line)))?;
        let throwaway = Self { dir, id, lifetime, install, services };
        throwaway.record()?;
        Ok(throwaway)
    }

    /// Kills Postgres, waits, and starts it again on the data that it left.
    pub(crate) fn kill_postgres(&mut self, pause: Duration) -> Result<()> {
        self.services.postgres.kill();
        std::thread::sleep(pause);
        let others = (None, Some(self.services.redis.url.clone()));
        let spec = spec(&self.dir, &self.id, self.lifetime, self.install, others, &|_| {});
        let Services { postgres, .. } = Services::start(&spec)?;
        ensure!(postgres.url == self.services.postgres.url, "Postgres came back elsewhere");
        self.services.postgres = postgres;
        self.record()
    }

    /// The same for Redis.
    pub(crate) fn kill_redis(&mut self, pause: Duration) -> Result<()> {
        self.services.redis.kill();
        std::thread::sleep(pause);
        let others = (Some(self.services.postgres.url.clone()), None);
        let spec = spec(&self.dir, &self.id, self.lifetime, self.install, others, &|_| {});
        let Services { redis, .. } = Services::start(&spec)?;
        ensure!(redis.url == self.services.redis.url, "Redis came back elsewhere");
        self.services.redis = redis;
        self.record()
    }

    /// Where files may lie that go with it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn record(&self) -> Result<()> {
        let records: Vec<String> = [&self.services.postgres, &self.services.redis]
            .into_iter()
            .filter_map(Service::record)
            .map(|record| record.to_string())
            .collect();
        devstack::write_atomic(&self.dir.join("records"), &records.join("\n"))
    }
}

/// A pair in a directory, or one server beside another that is there.
fn spec<'a>(
    dir: &Path,
    id: &str,
    lifetime: Lifetime,
    install: Install,
    (database_url, redis_url): (Option<String>, Option<String>),
    say: &'a dyn Fn(&str),
) -> Spec<'a> {
    Spec {
        dir: dir.to_owned(),
        id: id.to_owned(),
        lifetime,
        install,
        system: System::current(),
        database_url,
        redis_url,
        say,
        cancelled: &interrupts::stopping,
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        self.services.stop();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Ends and deletes what commands left that were killed.
fn clean_up(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for dir in entries.flatten().map(|entry| entry.path()) {
        let owner = fs::read_to_string(dir.join("owner")).unwrap_or_default();
        // Without an owner it is being made at this moment.
        let Ok(owner) = owner.parse::<ProcessId>() else { continue };
        if owner.is_alive() {
            continue;
        }
        let records = fs::read_to_string(dir.join("records")).unwrap_or_default();
        for record in records.lines().filter_map(|line| line.parse::<Record>().ok()) {
            record.clean_up(Duration::from_secs(10));
        }
        let _ = fs::remove_dir_all(&dir);
    }
}
