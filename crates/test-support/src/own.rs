//! A pair of servers for one test: to be stopped, paused and killed.

use std::path::PathBuf;

use devstack::process::ProcessId;
use devstack::{Install, Lifetime, Services, Spec, System};
use uuid::Uuid;

use crate::services::project;

/// Private Postgres and Redis of one test. Stopped servers come back on the same port with the same data.
#[derive(Debug)]
pub struct OwnServices {
    dir: PathBuf,
    id: String,
    services: Option<Services>,
    /// Address of Postgres, database `ballast`, without any table.
    pub database_url: String,
    /// Address of Redis.
    pub redis_url: String,
}

impl OwnServices {
    /// Starts a pair; about two seconds.
    pub async fn start() -> Self {
        tokio::task::spawn_blocking(|| {
            let project = project().expect("tests run inside the project");
            let id = Uuid::new_v4().simple().to_string();
            let dir = project.data_dir().expect("a directory for test data").join(format!("own-{id}"));
            let mut own =
                Self { dir, id, services: None, database_url: String::new(), redis_url: String::new() };
            own.boot();
            own
        })
        .await
        .expect("the servers start")
    }

    fn boot(&mut self) {
        let spec = Spec {
            dir: self.dir.clone(),
            id: self.id.clone(),
            // Not throw-away: the data has to be there again after a restart.
            lifetime: Lifetime::Keep,
            install: Install::Ask,
            system: System { terminal: false, ..System::current() },
            database_url: None,
            redis_url: None,
            say: &|_| {},
            cancelled: &|| false,
        };
        let services =
            Services::start(&spec).unwrap_or_else(|error| panic!("no servers for this test: {error:#}"));
        self.database_url.clone_from(&services.postgres.url);
        self.redis_url.clone_from(&services.redis.url);
        self.services = Some(services);
    }

    /// Process of the Postgres server, for signals. Its group holds the backends too.
    pub fn postgres(&self) -> ProcessId {
        let services = self.services.as_ref().expect("the servers run");
        services.postgres.record().expect("the server is ours").id
    }

    /// Process of the Redis server, for signals.
    pub fn redis(&self) -> ProcessId {
        let services = self.services.as_ref().expect("the servers run");
        services.redis.record().expect("the server is ours").id
    }

    /// Stops what still runs and starts both again, on the ports they had (unless someone took them meanwhile).
    pub async fn restart(mut self) -> Self {
        tokio::task::spawn_blocking(move || {
            self.services = None;
            self.boot();
            self
        })
        .await
        .expect("the servers start again")
    }
}

impl Drop for OwnServices {
    fn drop(&mut self) {
        self.services = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
