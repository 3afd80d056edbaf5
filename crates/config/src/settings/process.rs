//! The process: lifecycle, telemetry, listener.

use std::{net::IpAddr, time::Duration};

use secrecy::SecretString;
use url::Url;

use super::{HOUR, S, http_url};
use crate::{Environment, LogFormat, Problems, Vars, reader::Reader};

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

impl RuntimeConfig {
    /// For commands that only need to know where a role listens: `healthcheck`.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        r.get::<Environment>("APP_ENV");
        let environment = r.environment();
        let shutdown = ShutdownConfig::read(r);
        let telemetry = TelemetryConfig::read(r);
        let http = HttpConfig::read(r);
        Some(Self { environment, shutdown: shutdown?, telemetry: telemetry?, http: http? })
    }
}

impl ShutdownConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
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
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let log_filter = r.with("LOG_LEVEL", log_filter);
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
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
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

/// A level, or levels by target. The filter's own parser takes any other word for the name of a target, and a typo would
/// silence the whole process.
fn log_filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let known = |level: &str| LEVELS.contains(&level.trim().to_ascii_lowercase().as_str());
    for directive in text.split(',').map(str::trim).filter(|d| !d.is_empty()) {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !known(level) {
            return Err(format!(
                "expected a level ({}), or levels by target such as info,api=debug",
                LEVELS.join(", ")
            ));
        }
    }
    Ok(text.to_owned())
}
