//! Redis with short timeouts and a breaker.
//!
//! A *paused* Redis behind a pool with default settings stalls every request for tens of seconds. Here a call is over after
//! 250 ms at most, and after five failures in a row the breaker answers at once, so that callers take their other way.
//!
//! Three ways to a connection: the pool, which pings at every checkout (one more round trip); a few multiplexed connections that
//! stay checked out; and one over which the commands of many requests travel together, for the admission script in front of
//! every request.

mod batches;

use std::{
    fmt::Write as _,
    ops::AsyncFnOnce,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use config::RedisConfig;
use deadpool_redis::{
    Manager, Pool, Runtime,
    redis::{
        AsyncConnectionConfig, Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value,
        aio::MultiplexedConnection,
    },
};
use runtime::{Breaker, Counted};
use secrecy::ExposeSecret as _;

use self::batches::Batches;

const CREATE: Duration = Duration::from_millis(200);
const WAIT: Duration = Duration::from_millis(50);
const RECYCLE: Duration = Duration::from_millis(100);
const RESPONSE: Duration = Duration::from_millis(200);
/// The whole call, whatever its parts do.
const CALL: Duration = Duration::from_millis(250);
const FAILURES_TO_OPEN: u32 = 5;
/// Connections that are shared. One carries tens of thousands of calls a second; more spread the parsing over cores.
const HOT: usize = 4;

/// Why a call to Redis gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisError {
    /// The breaker is open: not even tried.
    #[error("redis is out")]
    Open,
    /// No answer in time.
    #[error("redis did not answer in time")]
    Timeout,
    /// An answer, but an error.
    #[error("redis failed")]
    Failed(#[source] deadpool_redis::redis::RedisError),
    /// No connection.
    #[error("no connection to redis: {0}")]
    Pool(String),
}

/// Redis, as every role uses it. Clones share everything.
#[derive(Debug, Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    hot: [Slot; HOT],
    next: AtomicUsize,
    batches: Batches,
    /// Of the batches.
    batched: Slot,
    breaker: Breaker,
    prefix: String,
}

/// Place of a shared connection.
#[derive(Default)]
struct Slot {
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Held by the one who connects, so that the others wait for it instead of connecting too.
    connecting: tokio::sync::Mutex<()>,
}

impl Slot {
    fn get(&self) -> Option<MultiplexedConnection> {
        self.lock().clone()
    }

    fn set(&self, connection: Option<MultiplexedConnection>) {
        *self.lock() = connection;
    }

    fn lock(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// A pool that connects when it is first used. Only a URL that cannot be parsed is an error.
    pub fn from_config(config: &RedisConfig) -> Result<Self, RedisError> {
        let connection = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CREATE))
            .set_response_timeout(Some(RESPONSE));
        let manager =
            Manager::new_with_config(config.url.expose_secret(), connection).map_err(RedisError::Failed)?;
        let pool = Pool::builder(manager)
            .max_size(config.pool_size)
            .wait_timeout(Some(WAIT))
            .create_timeout(Some(CREATE))
            .recycle_timeout(Some(RECYCLE))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|e| RedisError::Pool(e.to_string()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                pool,
                hot: std::array::from_fn(|_| Slot::default()),
                next: AtomicUsize::new(0),
                batches: Batches::default(),
                batched: Slot::default(),
                breaker: Breaker::new("redis", FAILURES_TO_OPEN),
                prefix: config.key_prefix.clone(),
            }),
        })
    }

    /// `name` with this deployment's prefix.
    pub fn key(&self, name: impl std::fmt::Display) -> String {
        let prefix = &self.inner.prefix;
        let mut key = String::with_capacity(prefix.len() + 96);
        key += prefix;
        // Writing to a String cannot fail.
        let _ = write!(key, "{name}");
        key
    }

    /// Runs commands on a connection of the pool.
    pub async fn call<T>(
        &self,
        f: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, RedisError> {
        // Boxed: it is 7 KiB, and passes through many hands.
        self.guarded(Box::pin(async {
            let mut connection = self.inner.pool.get().await.map_err(|e| RedisError::Pool(e.to_string()))?;
            f(&mut connection).await.map_err(RedisError::Failed)
        }))
        .await
    }

    /// Runs one command or script on a shared connection, without a ping before it.
    pub async fn call_hot<T>(
        &self,
        f: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, RedisError> {
        let slot = &self.inner.hot[self.inner.next.fetch_add(1, Ordering::Relaxed) % HOT];
        let result = self
            .guarded(Box::pin(async {
                let mut connection = self.hot_connection(slot).await?;
                f(&mut connection).await.map_err(RedisError::Failed)
            }))
            .await;
        if blames_connection(&result) {
            slot.set(None);
        }
        result
    }

    /// Runs `EVALSHA` together with those of others. A server that has not got the script (a new one, or after `SCRIPT FLUSH`) is
    /// given it first. All that is one call: the probe of an open breaker meets such a server too.
    pub async fn call_script(&self, script: &Script, command: impl Fn() -> Cmd) -> Result<Value, RedisError> {
        self.guarded(async {
            match batches::exchange(self, command()).await {
                Err(RedisError::Failed(error))
                    if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {}
                answer => return answer,
            }
            Box::pin(async {
                let mut connection = self.hot_connection(&self.inner.batched).await?;
                script.load_async(&mut connection).await.map_err(RedisError::Failed)
            })
            .await?;
            batches::exchange(self, command()).await
        })
        .await
    }

    async fn hot_connection(&self, slot: &Slot) -> Result<MultiplexedConnection, RedisError> {
        if let Some(connection) = slot.get() {
            return Ok(connection);
        }
        let _alone = slot.connecting.lock().await;
        if let Some(connection) = slot.get() {
            return Ok(connection);
        }
        let fresh = self.inner.pool.get().await.map_err(|e| RedisError::Pool(e.to_string()))?;
        // Out of the pool for good; a clone is a handle on the same connection.
        let connection = deadpool_redis::Connection::take(fresh);
        slot.set(Some(connection.clone()));
        Ok(connection)
    }

    async fn guarded<T>(&self, call: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
        let breaker = &self.inner.breaker;
        if !breaker.allows() {
            return Err(RedisError::Open);
        }
        let in_flight = Counted::in_gauge(metrics::gauge!("redis_calls_in_flight"));
        let result = tokio::time::timeout(CALL, call).await.unwrap_or(Err(RedisError::Timeout));
        drop(in_flight);
        match &result {
            Ok(_) => breaker.success(),
            Err(error) => {
                tracing::debug!(%error, "a call to redis failed");
                metrics::counter!("redis_failures_total").increment(1);
                breaker.failure();
                // All connections are of the same age: when the server is gone, so are they. A probe must not meet a dead one.
                if breaker.is_open() {
                    self.inner.hot.iter().chain([&self.inner.batched]).for_each(|slot| slot.set(None));
                }
            }
        }
        result
    }

    /// Which server this is, and how much it gave up. `None` from one that does not say: it has no `INFO`, or not for us.
    pub async fn incarnation(&self) -> Result<Option<Incarnation>, RedisError> {
        self.call(async |c| match deadpool_redis::redis::cmd("INFO").query_async::<String>(c).await {
            Ok(info) => Ok(Incarnation::read(&info)),
            Err(error) if is_about_the_call(&error) || error.code() == Some("NOPERM") => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    /// True while the breaker is open.
    pub fn is_out(&self) -> bool {
        self.inner.breaker.is_open()
    }

    /// The health check. It goes past the breaker's refusal as one of its probes.
    ///
    /// It writes: a Redis that is read-only, full, or cannot save answers a PING and is of no use, and a breaker that each PING
    /// closed would open again with the next request.
    pub async fn check(&self) -> Result<(), String> {
        let key = self.key("health");
        let written = self
            .call(async |c| {
                let mut set = deadpool_redis::redis::cmd("SET");
                set.arg(&key).arg(1).arg("PX").arg(10_000).exec_async(c).await
            })
            .await;
        match written {
            Ok(()) => Ok(()),
            Err(RedisError::Failed(e)) => Err(match e.code() {
                Some(code @ ("NOAUTH" | "WRONGPASS")) => {
                    format!("redis refuses the password ({code}): check REDIS_URL")
                }
                Some(code) => format!("redis answers {code}"),
                None => format!("redis failed: {}", e.category()),
            }),
            Err(error) => Err(runtime::redact::text(&error.to_string()).into_owned()),
        }
    }
}

/// A server from its start on, as long as it gives up nothing. Another one has forgotten something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    run_id: String,
    evicted_keys: String,
}

impl Incarnation {
    fn read(info: &str) -> Option<Self> {
        let value = |name: &str| {
            info.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.to_owned()))
        };
        Some(Self { run_id: value("run_id")?, evicted_keys: value("evicted_keys")? })
    }
}

/// Whether another connection may fare better.
fn blames_connection<T>(result: &Result<T, RedisError>) -> bool {
    match result {
        Err(RedisError::Failed(error)) => !is_about_the_call(error),
        Err(RedisError::Timeout) => true,
        _ => false,
    }
}

/// Errors that another connection would answer in the same way. The rest may be the connection's: broken, or to a server that
/// is not (or not yet, or no longer) the right one.
fn is_about_the_call(error: &deadpool_redis::redis::RedisError) -> bool {
    let elsewhere = ["READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "WRONGPASS", "NOPERM"];
    !error.is_unrecoverable_error() && !error.is_timeout() && !elsewhere.contains(&error.code().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_started_anew_or_gave_something_up_is_another_incarnation() {
        let read = |run_id: &str, evicted: u32| {
            let rest =
                "# Server\r\nredis_version:7.0.15\r\nredis_git_sha1:00000000\r\nrun_id_of_others:c\r\n";
            Incarnation::read(&format!("{rest}run_id:{run_id}\r\n# Stats\r\nevicted_keys:{evicted}\r\n"))
        };
        assert!(read("a", 1).is_some());
        assert_eq!(read("a", 1), read("a", 1));
        assert_ne!(read("a", 1), read("a", 2));
        assert_ne!(read("a", 1), read("b", 1));
        assert_eq!(Incarnation::read("run_id:a\r\n"), None);
    }
}
