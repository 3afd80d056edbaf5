//! The typed settings, read section by section.
//!
//! Every `read` takes all its variables first and uses `?` only on the results, so that one bad variable does not hide
//! the next.

use std::{net::IpAddr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::{
    Environment, LogFormat, Problems, Rate, SignUp, SigningKey, TrustedProxy, Vars, VerifyKey, reader::Reader,
};

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;
const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;

/// What every role needs to exist as a process: lifecycle and telemetry.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Development, staging or production.
    pub environment: Environment,
    /// The shutdown sequence.
    pub shutdown: ShutdownConfig,
    /// Logs, metrics, traces, errors.
    pub telemetry: TelemetryConfig,
    /// How the process listens.
    pub http: HttpConfig,
}

/// Times of the shutdown sequence, all counted from the signal.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownConfig {
    /// Readiness is off, new connections still welcome.
    pub delay: Duration,
    /// The whole sequence; what still runs then is cut.
    pub budget: Duration,
}

/// Logs, metrics, traces and error reports.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Filter directives of `tracing-subscriber`.
    pub log_filter: String,
    /// JSON or pretty.
    pub log_format: LogFormat,
    /// Bearer token for `/metrics` on the public port.
    pub metrics_token: Option<SecretString>,
    /// Where errors are reported.
    pub sentry_dsn: Option<SecretString>,
    /// Share of traces kept.
    pub traces_sample_rate: f64,
    /// OTLP collector.
    pub otlp_endpoint: Option<Url>,
    /// Name of the replica, where the platform gives one.
    pub replica: Option<String>,
    /// Commit of the running build, where the platform tells.
    pub release: Option<String>,
}

/// The HTTP server of any role.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Listen address.
    pub host: IpAddr,
    /// Listen port.
    pub port: u16,
    /// Port for metrics, if separate.
    pub admin_port: Option<u16>,
    /// First byte, and from there the whole head.
    pub header_timeout: Duration,
    /// Longest pause inside a request body.
    pub body_idle_timeout: Duration,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// How long a client may take nothing.
    pub write_stall_timeout: Duration,
    /// Open connections per process.
    pub max_connections: usize,
}

/// Postgres and Redis.
#[derive(Debug, Clone)]
pub struct StoresConfig {
    /// Postgres.
    pub database: DatabaseConfig,
    /// Redis.
    pub redis: RedisConfig,
}

/// Postgres.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// The database, possibly behind a pooler.
    pub url: SecretString,
    /// The database without a pooler, if that differs.
    pub direct_url: Option<SecretString>,
    /// Connections in the pool.
    pub pool_size: u32,
    /// Wait for a connection.
    pub acquire_timeout: Duration,
    /// Server-side limit of one statement.
    pub statement_timeout: Duration,
    /// Client-side limit of one call.
    pub call_deadline: Duration,
    /// Slower statements are logged.
    pub slow_query: Duration,
}

/// Redis.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// The server.
    pub url: SecretString,
    /// Goes in front of every key.
    pub key_prefix: String,
    /// Connections in the pool.
    pub pool_size: usize,
}

/// Tokens, sessions, passwords.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Signs access tokens.
    pub signing_key: SigningKey,
    /// Accepted beside it.
    pub verify_keys: Vec<VerifyKey>,
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// Lifetime of an access token.
    pub access_token_ttl: Duration,
    /// Longest pause between two refreshes.
    pub refresh_token_ttl: Duration,
    /// Longest life of a session.
    pub session_max_age: Duration,
    /// Server key for derivations and pseudonyms.
    pub server_secret: SecretString,
    /// Who may register.
    pub signup: SignUp,
    /// Password hashings at a time.
    pub password_hash_concurrency: usize,
}

/// The named rate limits.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Every request, per client.
    pub global: Rate,
    /// Login attempts, per address and account.
    pub login: Rate,
    /// Refreshes, per address.
    pub refresh: Rate,
    /// Registrations, per address.
    pub signup: Rate,
    /// AI requests, per user.
    pub ai_requests: Rate,
    /// AI tokens, per user.
    pub ai_tokens: Rate,
    /// AI tokens, per user and day.
    pub ai_tokens_daily: Rate,
    /// Example of a policy for one route.
    pub custom: Rate,
    /// AI requests at a time, per user.
    pub concurrent_streams: u32,
    /// API replicas that share the limits.
    pub replicas: u32,
}

/// The AI engine.
#[derive(Debug, Clone)]
pub struct AiConfig {
    /// Base URL with its `/v1`, without a trailing slash.
    pub engine_url: Url,
    /// Sent to the engine.
    pub engine_api_key: Option<SecretString>,
    /// TCP and TLS.
    pub connect_timeout: Duration,
    /// How long the answer's head is held back.
    pub header_hold: Duration,
    /// Until the first event.
    pub first_token_timeout: Duration,
    /// Silence inside a stream.
    pub idle_timeout: Duration,
    /// Longest stream.
    pub stream_timeout: Duration,
    /// Longest answer that is not a stream.
    pub response_timeout: Duration,
    /// Retries before the first event.
    pub retries: u32,
    /// Comment after so much silence.
    pub heartbeat: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
}

/// The queue runner.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// Jobs at a time.
    pub concurrency: usize,
    /// Fallback polling.
    pub poll_interval: Duration,
    /// A worker silent for so long is dead.
    pub lease: Duration,
    /// Keep finished jobs for so long.
    pub retention: Duration,
}

/// E-mail.
#[derive(Debug, Clone)]
pub struct MailConfig {
    /// Sender.
    pub from: String,
    /// Resend's key; without it mail goes to the log.
    pub resend_api_key: Option<SecretString>,
}

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
    /// Rate limits.
    pub limits: LimitsConfig,
    /// AI engine.
    pub ai: AiConfig,
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
    /// E-mail.
    pub mail: MailConfig,
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
        let limits = LimitsConfig::read(r);
        let ai = AiConfig::read(r);
        Some(Self {
            runtime: runtime?,
            stores: stores?,
            public_url: public_url?,
            trusted_proxy: trusted_proxy?,
            cors_allowed_origins: cors_allowed_origins?,
            request_timeout: request_timeout?,
            auth: auth?,
            limits: limits?,
            ai: ai?,
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
        let from = r.get::<String>("MAIL_FROM");
        let resend_api_key = r.get::<String>("RESEND_API_KEY").map(SecretString::from);
        let public_url = public_url(r);
        Some(Self {
            runtime: runtime?,
            stores: stores?,
            queue: queue?,
            mail: MailConfig { from: from?, resend_api_key },
            public_url: public_url?,
        })
    }
}

impl RuntimeConfig {
    /// For commands that only need a process: `migrate`, `seed`, `doctor`.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        r.get::<Environment>("APP_ENV");
        let environment = r.environment();
        let shutdown = ShutdownConfig::read(r);
        let telemetry = TelemetryConfig::read(r);
        let http = HttpConfig::read(r);
        Some(Self { environment, shutdown: shutdown?, telemetry: telemetry?, http: http? })
    }
}

impl ShutdownConfig {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let delay = r.duration("SHUTDOWN_DELAY", S(0), S(60));
        let budget = r.duration("SHUTDOWN_BUDGET", S(1), S(900));
        let (delay, budget) = (delay?, budget?);
        if delay >= budget {
            r.problem("SHUTDOWN_DELAY", "must be below SHUTDOWN_BUDGET");
        }
        // Railway sends SIGKILL this long after SIGTERM; its default is at once, which loses work at every deploy.
        if r.environment().is_deployed() && r.is_set("RAILWAY_ENVIRONMENT_NAME") {
            let draining =
                r.platform("RAILWAY_DEPLOYMENT_DRAINING_SECONDS").and_then(|s| s.parse::<u64>().ok());
            if S(draining.unwrap_or(0)) < budget + S(5) {
                r.problem(
                    "SHUTDOWN_BUDGET",
                    format!(
                        "must be at least 5 s below the service's draining time, which is {} s: set drainingSeconds to {} or more",
                        draining.unwrap_or(0),
                        (budget + S(5)).as_secs(),
                    ),
                );
            }
        }
        Some(Self { delay, budget })
    }
}

impl TelemetryConfig {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let log_filter = r.get::<String>("LOG_LEVEL");
        let log_format = r.get::<LogFormat>("LOG_FORMAT");
        let metrics_token = r.with("METRICS_TOKEN", |t| match t.len() {
            16.. => Ok(SecretString::from(t)),
            _ => Err("must have at least 16 characters".to_owned()),
        });
        let sentry_dsn = r.with("SENTRY_DSN", |t| {
            let url =
                Url::parse(t).map_err(|_| "expected a DSN such as https://KEY@HOST/PROJECT".to_owned())?;
            if url.username().is_empty() || url.path().len() < 2 {
                return Err("expected a DSN such as https://KEY@HOST/PROJECT".to_owned());
            }
            Ok(SecretString::from(t))
        });
        let rate = r.with("SENTRY_TRACES_SAMPLE_RATE", |t| match t.parse::<f64>() {
            Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
            _ => Err("expected a number from 0.0 to 1.0".to_owned()),
        });
        let otlp_endpoint = r.with("OTEL_EXPORTER_OTLP_ENDPOINT", http_url);
        Some(Self {
            log_filter: log_filter?,
            log_format: log_format?,
            metrics_token,
            sentry_dsn,
            traces_sample_rate: rate?,
            otlp_endpoint,
            replica: r.platform("RAILWAY_REPLICA_ID").or_else(|| r.platform("HOSTNAME")),
            release: r.platform("RAILWAY_GIT_COMMIT_SHA").or_else(|| r.platform("SOURCE_COMMIT")),
        })
    }
}

impl HttpConfig {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let host = r.with("HOST", |t| t.parse::<IpAddr>().map_err(|_| "expected an IP address".to_owned()));
        let port = r.number("PORT", 0, 65_535);
        let admin_port = r.number("ADMIN_PORT", 1, 65_535);
        let header_timeout = r.duration("HTTP_HEADER_TIMEOUT", S(1), S(300));
        let body_idle_timeout = r.duration("HTTP_BODY_IDLE_TIMEOUT", S(1), S(300));
        let keep_alive = r.duration("HTTP_KEEP_ALIVE", S(1), S(HOUR));
        let write_stall_timeout = r.duration("HTTP_WRITE_STALL_TIMEOUT", S(1), S(900));
        let max_connections = r.number("HTTP_MAX_CONNECTIONS", 10, 1_000_000);
        if admin_port.is_some() && admin_port == port {
            r.problem("ADMIN_PORT", "must differ from PORT");
        }
        Some(Self {
            host: host?,
            port: port? as u16,
            admin_port: admin_port.map(|p| p as u16),
            header_timeout: header_timeout?,
            body_idle_timeout: body_idle_timeout?,
            keep_alive: keep_alive?,
            write_stall_timeout: write_stall_timeout?,
            max_connections: max_connections? as usize,
        })
    }
}

impl StoresConfig {
    /// For commands that need the stores and nothing else: `migrate`, `seed`.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let database = DatabaseConfig::read(r);
        let redis = RedisConfig::read(r);
        Some(Self { database: database?, redis: redis? })
    }
}

impl DatabaseConfig {
    /// For `migrate`, which needs no Redis.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let url = r.with("DATABASE_URL", postgres_url);
        let direct_url = r.with("DATABASE_DIRECT_URL", postgres_url);
        let pool_size = r.number("DATABASE_POOL_SIZE", 1, 500);
        let acquire_timeout = r.duration("DATABASE_ACQUIRE_TIMEOUT", MS(10), S(60));
        let statement_timeout = r.duration("DATABASE_STATEMENT_TIMEOUT", MS(100), S(600));
        let call_deadline = r.duration("DATABASE_CALL_DEADLINE", MS(100), S(900));
        let slow_query = r.duration("DATABASE_SLOW_QUERY", MS(1), S(HOUR));
        if let (Some(statement), Some(call)) = (statement_timeout, call_deadline)
            && call < statement
        {
            r.problem("DATABASE_CALL_DEADLINE", "must not be below DATABASE_STATEMENT_TIMEOUT");
        }
        Some(Self {
            url: url?,
            direct_url,
            pool_size: pool_size? as u32,
            acquire_timeout: acquire_timeout?,
            statement_timeout: statement_timeout?,
            call_deadline: call_deadline?,
            slow_query: slow_query?,
        })
    }
}

impl RedisConfig {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let url = r.with("REDIS_URL", |t| {
            let url =
                Url::parse(t).map_err(|_| "expected redis://HOST:PORT or rediss://HOST:PORT".to_owned())?;
            match url.scheme() {
                "redis" | "rediss" if url.host().is_some() => Ok(SecretString::from(t)),
                _ => Err("expected redis://HOST:PORT or rediss://HOST:PORT".to_owned()),
            }
        });
        let key_prefix = r.with("REDIS_KEY_PREFIX", |t| {
            let ok = t.len() <= 64 && t.bytes().all(|b| b.is_ascii_graphic() && b != b'{' && b != b'}');
            if ok { Ok(t.to_owned()) } else { Err("takes up to 64 printable characters".to_owned()) }
        });
        let pool_size = r.number("REDIS_POOL_SIZE", 1, 500);
        Some(Self { url: url?, key_prefix: key_prefix?, pool_size: pool_size? as usize })
    }
}

impl AuthConfig {
    fn read(r: &mut Reader<'_>, public_url: Option<&Url>) -> Option<Self> {
        let signing_key = r.get::<SigningKey>("JWT_SIGNING_KEY");
        let verify_keys = r.list("JWT_VERIFY_KEYS", str::parse::<VerifyKey>);
        let issuer = r.get::<String>("JWT_ISSUER");
        let audience = r.get::<String>("JWT_AUDIENCE");
        let access_token_ttl = r.duration("ACCESS_TOKEN_TTL", S(60), S(HOUR));
        let refresh_token_ttl = r.duration("REFRESH_TOKEN_TTL", S(HOUR), S(365 * DAY));
        let session_max_age = r.duration("SESSION_MAX_AGE", S(HOUR), S(3_650 * DAY));
        let server_secret = r.with("SERVER_SECRET", |t| hex_secret(t, 32));
        let signup = r.get::<SignUp>("SIGNUP");
        let concurrency = r.number("PASSWORD_HASH_CONCURRENCY", 1, 64);
        if let (Some(signing), Some(verify)) = (&signing_key, &verify_keys) {
            let mut kids: Vec<&str> =
                verify.iter().map(|k| k.kid.as_str()).chain([signing.kid.as_str()]).collect();
            kids.sort_unstable();
            if kids.windows(2).any(|pair| pair[0] == pair[1]) {
                r.problem(
                    "JWT_VERIFY_KEYS",
                    "every key needs a key id of its own, different from the signing key's",
                );
            }
        }
        let issuer = issuer.or_else(|| public_url.map(|u| u.as_str().trim_end_matches('/').to_owned()));
        Some(Self {
            signing_key: signing_key?,
            verify_keys: verify_keys?,
            issuer: issuer?,
            audience: audience?,
            access_token_ttl: access_token_ttl?,
            refresh_token_ttl: refresh_token_ttl?,
            session_max_age: session_max_age?,
            server_secret: server_secret?,
            signup: signup?,
            password_hash_concurrency: concurrency? as usize,
        })
    }
}

impl LimitsConfig {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let global = r.get("RATE_LIMIT_GLOBAL");
        let login = r.get("RATE_LIMIT_LOGIN");
        let refresh = r.get("RATE_LIMIT_REFRESH");
        let signup = r.get("RATE_LIMIT_SIGNUP");
        let ai_requests = r.get("RATE_LIMIT_AI_REQUESTS");
        let ai_tokens = r.get("RATE_LIMIT_AI_TOKENS");
        let ai_tokens_daily = r.get("RATE_LIMIT_AI_TOKENS_DAILY");
        let custom = r.get("RATE_LIMIT_CUSTOM");
        let streams = r.number("AI_CONCURRENT_STREAMS", 1, 100_000);
        let replicas = r.number("API_REPLICAS", 1, 1_000);
        Some(Self {
            global: global?,
            login: login?,
            refresh: refresh?,
            signup: signup?,
            ai_requests: ai_requests?,
            ai_tokens: ai_tokens?,
            ai_tokens_daily: ai_tokens_daily?,
            custom: custom?,
            concurrent_streams: streams? as u32,
            replicas: replicas? as u32,
        })
    }
}

impl AiConfig {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let engine_url = r.with("ENGINE_URL", http_url);
        let engine_api_key = r.get::<String>("ENGINE_API_KEY").map(SecretString::from);
        let connect_timeout = r.duration("ENGINE_CONNECT_TIMEOUT", MS(50), S(60));
        let header_hold = r.duration("ENGINE_HEADER_HOLD", MS(100), S(60));
        let first_token_timeout = r.duration("ENGINE_FIRST_TOKEN_TIMEOUT", MS(100), S(900));
        let idle_timeout = r.duration("ENGINE_IDLE_TIMEOUT", MS(100), S(900));
        let stream_timeout = r.duration("ENGINE_STREAM_TIMEOUT", S(1), S(DAY));
        let response_timeout = r.duration("ENGINE_RESPONSE_TIMEOUT", S(1), S(HOUR));
        let retries = r.number("ENGINE_RETRIES", 0, 3);
        let heartbeat = r.duration("STREAM_HEARTBEAT", MS(50), S(300));
        let max_body = r.number("AI_MAX_BODY_BYTES", 1_024, 268_435_456);
        Some(Self {
            engine_url: engine_url?,
            engine_api_key,
            connect_timeout: connect_timeout?,
            header_hold: header_hold?,
            first_token_timeout: first_token_timeout?,
            idle_timeout: idle_timeout?,
            stream_timeout: stream_timeout?,
            response_timeout: response_timeout?,
            retries: retries? as u32,
            heartbeat: heartbeat?,
            max_body_bytes: max_body? as usize,
        })
    }
}

impl QueueConfig {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let concurrency = r.number("WORKER_CONCURRENCY", 1, 1_000);
        let poll_interval = r.duration("WORKER_POLL_INTERVAL", MS(10), S(60));
        let lease = r.duration("WORKER_LEASE", S(1), S(600));
        let retention = r.duration("JOB_RETENTION", S(DAY), S(365 * DAY));
        Some(Self {
            concurrency: concurrency? as usize,
            poll_interval: poll_interval?,
            lease: lease?,
            retention: retention?,
        })
    }
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

fn postgres_url(text: &str) -> Result<SecretString, String> {
    const SHAPE: &str = "expected postgres://USER:PASSWORD@HOST:PORT/DATABASE";
    let url = Url::parse(text).map_err(|_| SHAPE.to_owned())?;
    match url.scheme() {
        "postgres" | "postgresql" if url.path().len() > 1 => Ok(SecretString::from(text)),
        _ => Err(SHAPE.to_owned()),
    }
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

fn hex_secret(text: &str, bytes: usize) -> Result<SecretString, String> {
    let hex = text.len() == bytes * 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let first = text.get(..2).unwrap_or_default();
    if !hex || text.as_bytes().chunks(2).all(|pair| pair == first.as_bytes()) {
        return Err(format!(
            "expected {bytes} random bytes as {} hex digits; make them with `ballast keygen`",
            bytes * 2
        ));
    }
    debug_assert!(!SecretString::from(text).expose_secret().is_empty());
    Ok(SecretString::from(text))
}
