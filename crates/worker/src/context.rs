//! What jobs work with.

use std::sync::Arc;

use config::WorkerConfig;
use db::{Database, Redis, SealError, Sealed, SealingKeys, credentials};
use limits::{Limiter, Policies};
use secrecy::SecretString;
use uuid::Uuid;

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
    /// AI engines.
    pub engines: Arc<engine::Engines>,
    /// The events of resumable runs.
    pub run_events: runs::Events,
    /// Gives back what runs hold of their users' limits.
    pub limiter: Limiter,
    /// Sends e-mail.
    pub mailer: Mailer,
    /// Delivers webhooks to addresses that users gave.
    pub webhooks: webhooks::Client,
    sealing: Arc<SealingKeys>,
}

/// A stored credential, opened: for the moment in which a job uses it.
#[derive(Debug)]
pub struct OpenCredential {
    /// Of which system.
    pub provider: String,
    /// What the system asks for.
    pub secret: SecretString,
}

impl Context {
    /// The context of this configuration.
    pub fn new(database: Database, config: WorkerConfig, http: reqwest::Client) -> Self {
        let engines = Arc::new(engine::Engines::from_config(&config.ai).expect("the configuration was read"));
        let redis = Redis::from_config(&config.stores.redis).expect("the configuration has a Redis URL");
        let run_events = runs::Events::new(redis.clone(), &config.runs);
        let limiter = Limiter::new(redis, Policies::from_config(&config.limits), config.limits.replicas);
        let mailer = Mailer::from_config(&config.mail, config.runtime.environment, http.clone());
        let sealing = SealingKeys::from_config(&config.credentials.keys);
        let sealing = Arc::new(sealing.expect("the configuration has one key at least, of 32 bytes"));
        let webhooks = webhooks::Client::new(webhooks::Rules::of(config.runtime.environment));
        let webhooks = webhooks.expect("TLS can be set up, as it was for the other client");
        let config = Arc::new(config);
        Self { database, config, http, engines, run_events, limiter, mailer, webhooks, sealing }
    }

    /// Decrypts a secret that was sealed for this row and user.
    ///
    /// # Errors
    /// When it cannot be decrypted with the keys of this worker.
    pub fn open_sealed(&self, row: Uuid, user: Uuid, sealed: &Sealed) -> Result<SecretString, SealError> {
        self.sealing.open(row, user, sealed)
    }

    /// Reads and decrypts a credential of this user; `None` when the user has no such credential.
    ///
    /// # Errors
    /// When the database is away, or the secret cannot be decrypted with the keys of this worker.
    pub async fn open_credential(&self, owner: Uuid, id: Uuid) -> anyhow::Result<Option<OpenCredential>> {
        let find = async |c: &mut db::PgConnection| credentials::find_sealed(c, owner, id).await;
        let Some(found) = self.database.call("credentials.find_sealed", find).await? else { return Ok(None) };
        let secret = self.open_sealed(found.id, owner, &found.sealed)?;
        Ok(Some(OpenCredential { provider: found.provider, secret }))
    }
}
