//! What jobs work with.

use std::sync::Arc;

use config::WorkerConfig;
use db::Database;

use crate::Mailer;

/// Everything a job may need; clones share it.
#[derive(Debug, Clone)]
pub struct Context {
    /// Postgres.
    pub database: Database,
    /// The worker's configuration.
    pub config: Arc<WorkerConfig>,
    /// For calls to other systems; has timeouts and follows no redirects.
    pub http: reqwest::Client,
    /// Sends e-mail.
    pub mailer: Mailer,
}

impl Context {
    /// The context of this configuration.
    pub fn new(database: Database, config: WorkerConfig, http: reqwest::Client) -> Self {
        let mailer = Mailer::from_config(&config.mail, config.runtime.environment, http.clone());
        Self { database, config: Arc::new(config), http, mailer }
    }
}
