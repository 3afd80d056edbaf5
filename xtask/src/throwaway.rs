//! Postgres and Redis for one command: empty, fast, gone afterwards, also when the command was killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use devstack::process::ProcessId;
use devstack::project::Project;
use devstack::{Install, Lifetime, Record, Service, Services, Spec, System};

use crate::interrupts;
use crate::ui::Ui;

/// The servers; stopped and deleted when dropped.
#[derive(Debug)]
pub(crate) struct Throwaway {
    dir: PathBuf,
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
        let services = Services::start(&Spec {
            dir: dir.clone(),
            id: format!("{}-{}", project.id(), std::process::id()),
            lifetime,
            install,
            system: System::current(),
            database_url: None,
            redis_url: None,
            say: &|line| ui.step(line),
            cancelled: &interrupts::stopping,
        })?;
        let records: Vec<String> = [&services.postgres, &services.redis]
            .into_iter()
            .filter_map(Service::record)
            .map(|record| record.to_string())
            .collect();
        devstack::write_atomic(&dir.join("records"), &records.join("\n"))?;
        Ok(Self { dir, services })
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
