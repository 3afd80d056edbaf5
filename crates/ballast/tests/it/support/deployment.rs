//! Processes of the real binary over one set of stores.

use std::time::Duration;

use serde_json::{Value, json};
use test_support::{TestDatabase, TestRedis, test_redis};

use super::{PASSWORD, Persona, Process, eventually, insert_user};

/// What the processes share.
pub(crate) struct Deployment {
    pub(crate) database: TestDatabase,
    pub(crate) redis: TestRedis,
    pub(crate) engine: engine_sim::Sim,
}

impl Deployment {
    pub(crate) async fn new() -> Self {
        let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
        Self { database, redis, engine: engine_sim::Sim::start(engine_sim::SimConfig::instant()).await }
    }

    /// A new user, logged in at the process on this port.
    pub(crate) async fn user_at(&self, port: u16) -> Persona {
        let email = format!("{}@example.com", uuid::Uuid::new_v4());
        insert_user(self.database.pool(), &email, "user").await;
        let url = format!("http://127.0.0.1:{port}");
        let login = json!({ "email": email, "password": PASSWORD });
        let client = reqwest::Client::new();
        let tokens = client.post(format!("{url}/v1/auth/login")).json(&login).send().await.unwrap();
        let tokens: Value = tokens.json().await.unwrap();
        Persona::at_url(&url, tokens["access_token"].as_str().unwrap())
    }

    /// A process of this role, with `more` on top of what every process has; the last word on a variable counts.
    pub(crate) fn start(&self, role: &str, port: u16, more: &[(&str, &str)]) -> Process {
        self.with_vars(port, more, |vars| Process::start(&[role], vars))
    }

    /// The same with at most this many open files.
    pub(crate) fn start_with_files(&self, files: usize, role: &str, port: u16) -> Process {
        self.with_vars(port, &[], |vars| Process::start_with_files(files, &[role], vars))
    }

    fn with_vars(
        &self,
        port: u16,
        more: &[(&str, &str)],
        start: impl FnOnce(&[(&str, &str)]) -> Process,
    ) -> Process {
        let (port, engine) = (port.to_string(), format!("{}/v1", self.engine.url()));
        let mut vars = vec![
            ("PORT", port.as_str()),
            ("HOST", "127.0.0.1"),
            ("DATABASE_POOL_SIZE", "5"),
            ("REDIS_URL", self.redis.url.as_str()),
            ("REDIS_KEY_PREFIX", &self.redis.prefix),
            ("ENGINE_URL", &engine),
            ("LOG_FORMAT", "json"),
            ("SHUTDOWN_BUDGET", "6s"),
        ];
        vars.extend(self.database.variables());
        vars.extend(more);
        start(&vars)
    }
}

/// Waits until the process on this port is ready.
pub(crate) async fn ready(port: u16) {
    eventually("readiness", Duration::from_secs(20), async || {
        reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.is_ok_and(|r| r.status() == 200)
    })
    .await;
}

/// A metric of the process on this port: the sum over all its label sets that contain `labels`.
pub(crate) async fn metric(port: u16, name: &str, labels: &str) -> f64 {
    let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.unwrap().text().await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(labels));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}
