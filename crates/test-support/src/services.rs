//! Which servers the tests use.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use devstack::project::Project;
use devstack::shared::{TestServices, test_services};
use devstack::{Install, Lock, System};

/// The servers for this test process: those of the environment, otherwise the shared pair, started when need be.
pub async fn services() -> &'static TestServices {
    static SERVICES: OnceLock<TestServices> = OnceLock::new();
    if let Some(found) = SERVICES.get() {
        return found;
    }
    tokio::task::spawn_blocking(|| {
        SERVICES.get_or_init(|| find().unwrap_or_else(|error| panic!("{error:#}")))
    })
    .await
    .expect("the lookup does not panic by itself")
}

fn find() -> Result<TestServices> {
    let (postgres, redis) = (variable("TEST_DATABASE_URL"), variable("TEST_REDIS_URL"));
    if let (Some(database_url), Some(redis_url)) = (&postgres, &redis) {
        return Ok(TestServices { database_url: database_url.clone(), redis_url: redis_url.clone() });
    }
    anyhow::ensure!(
        postgres.is_some() || pooler().is_none(),
        "TEST_POOLER stands in front of a Postgres of yours: set TEST_DATABASE_URL to that one"
    );
    let shared = test_services(&project()?).context("no Postgres and Redis for the tests")?;
    Ok(TestServices {
        database_url: postgres.unwrap_or(shared.database_url),
        redis_url: redis.unwrap_or(shared.redis_url),
    })
}

/// The nginx program, installed when it is missing and that is allowed (as root it is). One test installs, the others wait.
pub fn nginx() -> PathBuf {
    let find = || -> Result<PathBuf> {
        let dir = project()?.data_dir()?;
        let _lock = Lock::acquire(&dir.join("nginx.lock"))?;
        let system = System { terminal: false, ..System::current() };
        devstack::nginx(&system, Install::Ask, &|line| eprintln!("{line}"))
    };
    find().unwrap_or_else(|error| panic!("{error:#}"))
}

/// `HOST:PORT` of a transaction pooler in front of the tests' Postgres: with it the processes of the full-stack tests reach their
/// databases that way. Tests that start servers of their own go to those directly.
pub(crate) fn pooler() -> Option<String> {
    variable("TEST_POOLER")
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The checkout that the tests run in; the one they were built in when the working directory is elsewhere.
pub(crate) fn project() -> Result<Project> {
    Project::find().or_else(|_| Project::containing(Path::new(env!("CARGO_MANIFEST_DIR"))))
}
