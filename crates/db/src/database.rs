//! The connection pool, and the one way to use it.

use std::{ops::AsyncFnOnce, str::FromStr as _, sync::Arc, time::Duration};

use config::DatabaseConfig;
use runtime::{Lifecycle, Phase, backoff::Backoff};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tracing::log::LevelFilter;

use crate::{Error, Migrations};

/// For a connection of the health check's own, and its question.
const APART: Duration = Duration::from_secs(1);

/// Postgres, as every role uses it. Clones share the pool.
#[derive(Debug, Clone)]
pub struct Database {
    pool: PgPool,
    turns: Turns,
    direct: PgConnectOptions,
    call_deadline: Duration,
}

impl Database {
    /// A pool that connects when it is first used. Only a URL that cannot be parsed is an error.
    pub fn from_config(config: &DatabaseConfig, application_name: &str) -> crate::Result<Self> {
        let pooled = config.direct_url.is_some();
        let mut options = connect_options(&config.url, config, application_name)?;
        if pooled {
            // A transaction pooler hands every transaction to another server connection: no session settings. PgBouncer also
            // refuses start-up parameters that it does not know. Prepared statements it has to keep track of itself, which
            // PgBouncer does from 1.21 on: sqlx prepares and executes in two steps, so there is no way without them.
            options = options.extra_float_digits(None);
        } else {
            options = with_session_timeouts(options, config);
        }
        let direct = match &config.direct_url {
            Some(url) => connect_options(url, config, application_name)?,
            None => options.clone(),
        };
        let pool = PgPoolOptions::new()
            .max_connections(config.pool_size)
            // The other half is for the wait before it, see [`Turns`].
            .acquire_timeout(config.acquire_timeout / 2)
            .acquire_slow_level(LevelFilter::Debug)
            .idle_timeout(Duration::from_secs(300))
            .max_lifetime(Duration::from_secs(1_800))
            // A ping before each use would double the round trips; a dead connection fails one call instead.
            .test_before_acquire(false)
            .connect_lazy_with(options);
        let turns = Turns::new(config.pool_size, config.acquire_timeout / 2);
        Ok(Self { pool, turns, direct, call_deadline: config.call_deadline })
    }

    /// For tests: a pool made elsewhere.
    pub fn from_pool(pool: PgPool) -> Self {
        let direct = (*pool.connect_options()).clone();
        let turns = Turns::new(pool.options().get_max_connections(), pool.options().get_acquire_timeout());
        Self { pool, turns, direct, call_deadline: Duration::from_secs(15) }
    }

    /// The pool itself, for the job queue.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How to reach the server without a pooler in between: for LISTEN, locks and migrations.
    pub fn direct_options(&self) -> &PgConnectOptions {
        &self.direct
    }

    /// Lends a connection to `f`, for as long as the call deadline allows.
    ///
    /// When time is up, or the caller goes away in the middle, the connection is closed and not returned: an answer may
    /// still be on its way, and a server that vanished would hold the slot for minutes.
    pub async fn call<T, E: From<Error>>(
        &self,
        name: &'static str,
        f: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut checkout = Checkout::new(self, name).await?;
        match tokio::time::timeout(self.call_deadline, f(checkout.connection())).await {
            Ok(result) => {
                checkout.finished();
                result
            }
            Err(_) => Err(Error::Deadline.into()),
        }
    }

    /// Like [`Self::call`], inside a transaction: committed when `f` returns `Ok`, rolled back otherwise.
    pub async fn transaction<T, E: From<Error>>(
        &self,
        name: &'static str,
        f: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut checkout = Checkout::new(self, name).await?;
        let mut clean = true;
        let work = async {
            let mut tx = checkout.connection().begin().await.map_err(Error::from)?;
            let result = f(&mut tx).await;
            if result.is_ok() {
                tx.commit().await.map_err(Error::from)?;
            } else {
                // What the work says counts, also when this fails; the connection is closed then.
                clean = tx.rollback().await.is_ok();
            }
            result
        };
        match tokio::time::timeout(self.call_deadline, work).await {
            Ok(result) => {
                if clean {
                    checkout.finished();
                }
                result
            }
            Err(_) => Err(Error::Deadline.into()),
        }
    }

    /// Waits until the server answers and its schema is not behind this binary, for as long as the process runs. Says what
    /// it waits for whenever that changes.
    pub async fn wait_until_ready(&self, lifecycle: &Lifecycle) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut last = String::new();
        loop {
            let problem = match self.check().await {
                Ok(()) => {
                    tracing::info!("the database is ready");
                    return;
                }
                Err(problem) => problem,
            };
            if problem != last {
                tracing::warn!(problem, "waiting for the database");
                last = problem;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = lifecycle.reached(Phase::Draining) => return,
            }
        }
    }

    /// The health check: does the server answer, and is the schema new enough? A schema that is *ahead* is fine, so that a
    /// release can be rolled back.
    pub async fn check(&self) -> Result<(), String> {
        let found = if self.is_used_up() {
            self.ask_apart().await
        } else {
            self.call("health.check", async |c| Migrations::current_version(c).await).await
        };
        let expected = Migrations::expected_version();
        match found {
            Ok(Some(version)) if version >= expected => Ok(()),
            Ok(found) => {
                let found = found.map_or("none".to_owned(), |v| v.to_string());
                Err(format!(
                    "the schema is at version {found}, this build needs {expected}: run `ballast migrate up`"
                ))
            }
            Err(error) => Err(self.reason(&error).await),
        }
    }

    /// No connection of the pool is free. That is load, which each request is told, and no reason to take the replica out.
    fn is_used_up(&self) -> bool {
        self.pool.size() >= self.pool.options().get_max_connections() && self.pool.num_idle() == 0
    }

    /// The version of the schema, on a connection of its own.
    async fn ask_apart(&self) -> crate::Result<Option<i64>> {
        let options = self.pool.connect_options();
        let ask = async {
            let mut connection = options.connect().await?;
            let version = Migrations::current_version(&mut connection).await;
            let _ = connection.close().await;
            version
        };
        tokio::time::timeout(APART, ask).await.unwrap_or(Err(Error::Deadline))
    }

    /// A pool without any connection says only that it timed out: ask the server itself why there is none.
    async fn reason(&self, error: &Error) -> String {
        if matches!(error, Error::Unavailable(sqlx::Error::PoolTimedOut)) && self.pool.size() == 0 {
            let options = self.pool.connect_options();
            let attempt = tokio::time::timeout(Duration::from_millis(400), options.connect()).await;
            if let Ok(Err(cause)) = attempt {
                return describe(&cause.into());
            }
        }
        describe(error)
    }

    /// Numbers of the pool, for metrics.
    pub fn record_metrics(&self) {
        let (size, idle) = (f64::from(self.pool.size()), self.pool.num_idle() as f64);
        metrics::gauge!("db_pool_connections", "state" => "idle").set(idle);
        metrics::gauge!("db_pool_connections", "state" => "used").set(size - idle);
        metrics::gauge!("db_pool_max_connections").set(f64::from(self.pool.options().get_max_connections()));
    }

    /// Closes the pool: what is checked out is closed when it comes back.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.pool.close()).await;
    }
}

const TLS_FAILED: &str = "the TLS handshake failed: check sslmode, sslrootcert and the server's certificate";

/// A text for logs and the health report: which kind of trouble, without addresses or credentials.
pub(crate) fn describe(error: &Error) -> String {
    let source = match error {
        Error::Deadline => return error.to_string(),
        Error::Unavailable(source) | Error::Query(source) => source,
    };
    match source {
        sqlx::Error::PoolTimedOut => "no connection became free in time".to_owned(),
        // rustls reports a certificate that it refuses as invalid data.
        sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => TLS_FAILED.to_owned(),
        sqlx::Error::Tls(_) => TLS_FAILED.to_owned(),
        sqlx::Error::Io(io) => format!("cannot connect: {}", io.kind()),
        sqlx::Error::Database(e) => match e.code().as_deref() {
            Some("28P01" | "28000") => "the server refuses user or password: check DATABASE_URL".to_owned(),
            Some("3D000") => "the database does not exist: check DATABASE_URL".to_owned(),
            Some("53300") => {
                "the server has no connection left: lower DATABASE_POOL_SIZE or raise max_connections"
                    .to_owned()
            }
            Some(code) => format!("the server answers {code}"),
            None => "the server answers an error".to_owned(),
        },
        _ => error.to_string(),
    }
}

fn connect_options(
    url: &SecretString,
    config: &DatabaseConfig,
    name: &str,
) -> crate::Result<PgConnectOptions> {
    Ok(PgConnectOptions::from_str(url.expose_secret())?
        .application_name(name)
        .log_statements(LevelFilter::Trace)
        .log_slow_statements(LevelFilter::Warn, config.slow_query))
}

fn with_session_timeouts(options: PgConnectOptions, config: &DatabaseConfig) -> PgConnectOptions {
    let statement = config.statement_timeout.as_millis();
    options.options([
        ("statement_timeout", statement.to_string()),
        // A lock that is not to be had in half that time is better reported than waited for.
        ("lock_timeout", (statement / 2).to_string()),
        ("idle_in_transaction_session_timeout", config.call_deadline.as_millis().to_string()),
    ])
}

/// Who may ask the pool, as many at a time as it may have connections; the others wait here, and not for long.
///
/// The pool's own timeout runs from when somebody begins to wait, and making a connection is part of it. After an outage, with
/// many waiting, each would get its turn when its time is nearly up, begin to connect, and leave that unfinished to the next
/// one, for as long as the load lasts. Whoever has a turn here has half of the time for the connection alone.
#[derive(Debug, Clone)]
struct Turns {
    free: Arc<Semaphore>,
    wait: Duration,
}

impl Turns {
    fn new(count: u32, wait: Duration) -> Self {
        Self { free: Arc::new(Semaphore::new(count as usize)), wait }
    }

    async fn next(&self) -> Result<OwnedSemaphorePermit, sqlx::Error> {
        let turn = tokio::time::timeout(self.wait, self.free.clone().acquire_owned()).await;
        turn.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)
    }
}

/// A connection that is closed unless its user says that it finished.
struct Checkout {
    connection: Option<PoolConnection<Postgres>>,
    _turn: OwnedSemaphorePermit,
    finished: bool,
    name: &'static str,
    started: Instant,
}

impl Checkout {
    async fn new(database: &Database, name: &'static str) -> crate::Result<Self> {
        let started = Instant::now();
        let acquire = async {
            let turn = database.turns.next().await?;
            Ok((turn, database.pool.acquire().await?))
        };
        let (turn, connection) = acquire.await.inspect_err(|_: &sqlx::Error| {
            metrics::counter!("db_acquire_failures_total").increment(1);
        })?;
        Ok(Self { connection: Some(connection), _turn: turn, finished: false, name, started })
    }

    fn connection(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("taken only on drop")
    }

    fn finished(mut self) {
        self.finished = true;
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        metrics::histogram!("db_call_seconds", "call" => self.name).record(self.started.elapsed());
        if let Some(connection) = self.connection.take()
            && !self.finished
        {
            metrics::counter!("db_connections_closed_total", "call" => self.name).increment(1);
            drop(connection.detach());
        }
    }
}
