//! The typed settings, read section by section: the roles here, the sections in their files.
//!
//! Every `read` takes all its variables first and uses `?` only on the results, so that one bad variable does not hide
//! the next.

mod ai;
mod auth;
mod cache;
mod credentials;
mod limits;
mod process;
mod runs;
mod stores;
mod webhooks;
mod work;

pub use ai::{AiConfig, EngineConfig, ModelRule};
pub use auth::AuthConfig;
pub use cache::{CacheConfig, CachedRoute};
pub use credentials::CredentialsConfig;
pub use limits::LimitsConfig;
pub use process::{HttpConfig, RuntimeConfig, ShutdownConfig, TelemetryConfig};
pub use runs::RunsConfig;
pub use stores::{DatabaseConfig, RedisConfig, StoresConfig};
pub use webhooks::WebhooksConfig;
pub use work::{MailConfig, QueueConfig, RetentionConfig};

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::{Environment, Problems, TrustedProxy, Vars, reader::Reader};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;

/// Everything `ballast api` needs.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Process, telemetry, listener.
    pub runtime: RuntimeConfig,
    /// Postgres and Redis.
    pub stores: StoresConfig,
    /// Where clients reach us.
    pub public_url: Url,
    /// Whose word on the client's address counts.
    pub trusted_proxy: TrustedProxy,
    /// Exact origins for CORS.
    pub cors_allowed_origins: Vec<String>,
    /// Longest ordinary request.
    pub request_timeout: Duration,
    /// Tokens, sessions, passwords.
    pub auth: AuthConfig,
    /// Stored credentials of other systems.
    pub credentials: CredentialsConfig,
    /// Development without a mail provider: mails are shown to administrators, one-time tokens included.
    pub shows_mails: bool,
    /// Rate limits.
    pub limits: LimitsConfig,
    /// AI engine.
    pub ai: AiConfig,
    /// Resumable runs.
    pub runs: RunsConfig,
    /// The cache of its answers.
    pub cache: CacheConfig,
    /// Webhooks that come in.
    pub webhooks: WebhooksConfig,
}

/// Everything `ballast worker` needs.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Process, telemetry, listener.
    pub runtime: RuntimeConfig,
    /// Postgres and Redis.
    pub stores: StoresConfig,
    /// The queue.
    pub queue: QueueConfig,
    /// AI engine.
    pub ai: AiConfig,
    /// Rate limits, for what runs hold of them.
    pub limits: LimitsConfig,
    /// Runs at a time in this process.
    pub run_concurrency: usize,
    /// Resumable runs.
    pub runs: RunsConfig,
    /// What documents are embedded with.
    pub embedding_model: String,
    /// What the clean-up keeps.
    pub retention: RetentionConfig,
    /// E-mail.
    pub mail: MailConfig,
    /// Stored credentials of other systems.
    pub credentials: CredentialsConfig,
    /// Links in e-mail point here.
    pub public_url: Url,
}

impl ApiConfig {
    /// Reads everything the API needs, or reports every problem at once.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let runtime = RuntimeConfig::read(r);
        let stores = StoresConfig::read(r);
        let public_url = public_url(r);
        let trusted_proxy = r.get("TRUSTED_PROXY");
        let cors_allowed_origins = r.list("CORS_ALLOWED_ORIGINS", origin);
        let request_timeout = r.duration("REQUEST_TIMEOUT", S(1), S(900));
        let auth = AuthConfig::read(r, public_url.as_ref());
        let credentials = CredentialsConfig::read(r);
        let shows_mails = !r.is_set("RESEND_API_KEY") && r.environment() == Environment::Development;
        let limits = LimitsConfig::read(r);
        let ai = AiConfig::read(r);
        let runs = RunsConfig::read(r);
        let cache = CacheConfig::read(r);
        let webhooks = WebhooksConfig::read(r);
        Some(Self {
            runtime: runtime?,
            stores: stores?,
            public_url: public_url?,
            trusted_proxy: trusted_proxy?,
            cors_allowed_origins: cors_allowed_origins?,
            request_timeout: request_timeout?,
            auth: auth?,
            credentials: credentials?,
            shows_mails,
            limits: limits?,
            ai: ai?,
            runs: runs?,
            cache: cache?,
            webhooks: webhooks?,
        })
    }
}

impl WorkerConfig {
    /// Reads everything the worker needs, or reports every problem at once.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let runtime = RuntimeConfig::read(r);
        let stores = StoresConfig::read(r);
        let queue = QueueConfig::read(r);
        let ai = AiConfig::read(r);
        let limits = LimitsConfig::read(r);
        let run_concurrency = r.number("RUN_CONCURRENCY", 1, 1_000);
        let runs = RunsConfig::read(r);
        let embedding_model = r.with("EMBEDDING_MODEL", model_name);
        let retention = RetentionConfig::read(r);
        let from = r.get::<String>("MAIL_FROM");
        let resend_api_key = r.get::<String>("RESEND_API_KEY").map(SecretString::from);
        let credentials = CredentialsConfig::read(r);
        let app_url = r.with("APP_URL", http_url);
        let public_url = public_url(r);
        Some(Self {
            runtime: runtime?,
            stores: stores?,
            queue: queue?,
            ai: ai?,
            limits: limits?,
            run_concurrency: run_concurrency? as usize,
            runs: runs?,
            embedding_model: embedding_model?,
            retention: retention?,
            mail: MailConfig { from: from?, resend_api_key, app_url },
            credentials: credentials?,
            public_url: public_url?,
        })
    }
}

fn model_name(text: &str) -> Result<String, String> {
    let fine = (1..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(text.to_owned()) } else { Err("expected 1 to 200 visible ASCII characters".to_owned()) }
}

fn public_url(r: &mut Reader<'_>) -> Option<Url> {
    r.with("PUBLIC_URL", http_url)
}

fn http_url(text: &str) -> Result<Url, String> {
    const SHAPE: &str = "expected a URL such as https://host.example/v1, without credentials or a query";
    let mut url = Url::parse(text).map_err(|_| SHAPE.to_owned())?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !plain || url.fragment().is_some()
    {
        return Err(SHAPE.to_owned());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// An origin as RFC 6454 serialises it: scheme, host, and the port unless it is the scheme's own.
fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Err("`*` is refused because requests carry credentials; list the exact origins".to_owned());
    }
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text => {
            Ok(text.to_owned())
        }
        _ => Err("expected exact origins such as https://app.example.com, without a path or trailing slash"
            .to_owned()),
    }
}
