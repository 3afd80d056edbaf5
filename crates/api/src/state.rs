//! What handlers share.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::anyhow;
use config::{ApiConfig, TrustedProxy, WebhooksConfig};
use db::{Database, Redis, SealingKeys};
use health::Registry;
use limits::{Limiter, Policies};
use runtime::{Clock, Lifecycle, MetricsHandle};
use secrecy::ExposeSecret as _;
use tower_http::cors::CorsLayer;
use tracing::Instrument as _;
use webhooks::Verifier;

use crate::{
    Error, Result,
    ai::Ai,
    app,
    auth::{Keyring, Marks, Passwords},
    client_ip::ClientIps,
    runs::Runs,
    shield::Shield,
};

/// Everything the API needs; clones are cheap.
#[derive(Clone)]
pub struct AppState {
    inner: Arc<Inner>,
}

/// The parts of the state, reached through [`AppState`].
pub struct Inner {
    /// The configuration.
    pub config: ApiConfig,
    /// Postgres.
    pub database: Database,
    /// Redis.
    pub redis: Redis,
    /// Rate limits, permits, revocation.
    pub limiter: Limiter,
    /// Signs and verifies access tokens.
    pub keyring: Keyring,
    /// Hashes passwords, a few at a time.
    pub passwords: Passwords,
    /// Encrypts the credentials that users store.
    pub sealing: SealingKeys,
    /// API keys seen lately.
    pub key_records: crate::auth::KeyRecords,
    /// Whether marks of revocations are missing in Redis.
    pub marks: Marks,
    /// The AI proxy.
    pub ai: Ai,
    /// Resumable runs.
    pub runs: Runs,
    /// Who may send webhooks.
    pub webhook_senders: BTreeMap<String, Verifier>,
    /// Against bursts, before the limits.
    pub(crate) shield: Shield,
    /// What scripts of other origins may do.
    pub(crate) cors: Option<CorsLayer>,
    /// Who is behind a connection.
    pub client_ips: Arc<ClientIps>,
    /// Health checks.
    pub health: Registry,
    /// Metrics of the process.
    pub metrics: MetricsHandle,
    /// The life of the process.
    pub lifecycle: Lifecycle,
    /// The clock.
    pub clock: Clock,
}

impl std::ops::Deref for AppState {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl AppState {
    /// Brings up what the API consists of. Nothing is connected yet: that happens in the background, after the port is bound.
    pub fn from_config(
        config: ApiConfig,
        lifecycle: Lifecycle,
        clock: Clock,
        metrics: MetricsHandle,
    ) -> anyhow::Result<Self> {
        let database = Database::from_config(&config.stores.database, "ballast-api")?;
        let redis = Redis::from_config(&config.stores.redis)?;
        let limiter =
            Limiter::new(redis.clone(), Policies::from_config(&config.limits), config.limits.replicas);
        let keyring = Keyring::from_config(&config.auth, clock.clone())?;
        let passwords = Passwords::new(config.auth.password_hash_concurrency, lifecycle.clone())?;
        let sealing = SealingKeys::from_config(&config.credentials.keys)?;
        let ai = Ai::from_config(
            &config,
            &lifecycle,
            database.clone(),
            redis.clone(),
            limiter.clone(),
            clock.clone(),
        )?;
        let runs = Runs::new(redis.clone(), &config.runs, lifecycle.clone());
        let health = Registry::new(lifecycle.clone(), env!("CARGO_PKG_VERSION"));
        let key_records = crate::auth::KeyRecords::default();
        let webhook_senders = webhook_senders(&config.webhooks)?;
        let client_ips = Arc::new(ClientIps::new(config.trusted_proxy.clone()));
        let inner = Inner {
            shield: Shield::default(),
            cors: app::cors(&config),
            config,
            database,
            redis,
            limiter,
            keyring,
            passwords,
            sealing,
            key_records,
            marks: Marks::default(),
            ai,
            runs,
            webhook_senders,
            client_ips,
            health,
            metrics,
            lifecycle,
            clock,
        };
        let state = Self { inner: Arc::new(inner) };
        state.register_checks();
        Ok(state)
    }

    /// Runs `work` to its end, also when the client leaves meanwhile: that drops the handler, which must not stop between two
    /// steps that belong together, such as ending a session and telling the other replicas.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.lifecycle.spawn_task(work.in_current_span()).await.map_err(Error::internal)?
    }

    fn register_checks(&self) {
        use health::Kind::{Optional, Required};
        let timeout = std::time::Duration::from_millis(2_500);
        let database = self.database.clone();
        self.health.register("postgres", Required, timeout, move || {
            let database = database.clone();
            async move { database.check().await }
        });
        let redis = self.redis.clone();
        self.health.register("redis", Optional, timeout, move || {
            let redis = redis.clone();
            async move { redis.check().await }
        });
        for (position, engine) in self.ai.engines().into_iter().enumerate() {
            let name = if position == 0 { "engine".to_owned() } else { format!("engine:{engine}") };
            let ai = self.ai.clone();
            self.health.register(name, Optional, timeout, move || {
                let (ai, engine) = (ai.clone(), engine.clone());
                async move { ai.check(&engine).await }
            });
        }
        if self.config.trusted_proxy == TrustedProxy::Railway {
            let client_ips = self.client_ips.clone();
            self.health.register("client_address", Optional, timeout, move || {
                let client_ips = client_ips.clone();
                async move { client_ips.check() }
            });
        }
    }
}

fn webhook_senders(config: &WebhooksConfig) -> anyhow::Result<BTreeMap<String, Verifier>> {
    let mut senders = BTreeMap::new();
    if !config.stripe.is_empty() {
        senders.insert("stripe".to_owned(), Verifier::Stripe(config.stripe.clone()));
    }
    for (name, secrets) in &config.senders {
        let secrets = secrets.iter().map(|s| s.expose_secret().parse().map_err(|e| anyhow!("{name}: {e}")));
        senders.insert(name.clone(), Verifier::Standard(secrets.collect::<anyhow::Result<_>>()?));
    }
    Ok(senders)
}
