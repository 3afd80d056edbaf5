//! Postgres and Redis.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::{HOUR, MS, S};
use crate::{Problems, Vars, reader::Reader};

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

impl StoresConfig {
    /// For commands that need the stores and nothing else: `migrate`, `seed`.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
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

    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
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
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
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

fn postgres_url(text: &str) -> Result<SecretString, String> {
    const SHAPE: &str = "expected postgres://USER:PASSWORD@HOST:PORT/DATABASE";
    let url = Url::parse(text).map_err(|_| SHAPE.to_owned())?;
    match url.scheme() {
        "postgres" | "postgresql" if url.path().len() > 1 => Ok(SecretString::from(text)),
        _ => Err(SHAPE.to_owned()),
    }
}
