//! Migrations: compiled in, run in one place (`ballast migrate`), by one process at a time.
//!
//! sqlx's own lock waits for ever, and its session-level `pg_advisory_lock` call deadlocks with
//! `CREATE INDEX CONCURRENTLY`, which waits for every older snapshot, the waiting migrator's included. So the lock is polled
//! with `pg_try_advisory_lock`, whose statement ends at once, up to a deadline.

use std::time::Duration;

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, migrate::Migrator, postgres::PgConnectOptions,
};
use tokio::time::Instant;

use crate::Database;

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");
/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Any constant will do, as long as nobody else on the database uses it.
const LOCK_KEY: i64 = 0x6261_6c6c_6173_7401;

/// A failed migration.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The server is older than what the migrations are written for.
    #[error("Postgres {0} is too old: 14 or newer is needed")]
    TooOld(String),
    /// Only the build that brought a migration knows how to take it back.
    #[error("migration {0} was applied by a newer build: take it back with that one")]
    Newer(i64),
    /// The database cannot be reached.
    #[error("{0}")]
    Connect(String),
    /// Another process migrates, or holds the lock for another reason.
    #[error("another process holds the migration lock for more than {} s; look for it with: select * from pg_locks where locktype = 'advisory'", .0.as_secs())]
    Locked(Duration),
    /// A migration is wrong, or differs from the one that was applied.
    #[error(transparent)]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Reading the table of migrations failed.
    #[error("reading the state of the migrations failed")]
    Query(#[from] sqlx::Error),
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationStatus {
    /// In the database and in this build.
    Applied,
    /// In this build only.
    Pending,
    /// In the database only: another, newer build put it there.
    Unknown,
}

/// One migration.
#[derive(Debug, Clone)]
pub struct Migration {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub description: String,
    /// Where it stands.
    pub status: MigrationStatus,
}

/// Runs migrations over a connection of its own.
#[derive(Debug)]
pub struct Migrations {
    options: PgConnectOptions,
    migrator: Migrator,
}

impl Migrations {
    /// For the database behind `database`, past any pooler.
    pub fn new(database: &Database) -> Self {
        // A migration may take longer than a request: no statement timeout, but never queue behind a lock for long,
        // because everybody else queues behind us. Shorter than a request waits for a lock (5 s, half of the default of
        // DATABASE_STATEMENT_TIMEOUT), so that those behind us get through.
        let options = database.direct_options().clone().options([
            ("statement_timeout", "0"),
            ("lock_timeout", "4000"),
            ("idle_in_transaction_session_timeout", "0"),
        ]);
        let own = Migrator { migrations: MIGRATOR.migrations.clone(), ..Migrator::DEFAULT };
        Self { options, migrator: Migrator::DEFAULT }.with(own)
    }

    /// Runs these and not those of this build, as the next release would.
    pub fn with(self, mut migrator: Migrator) -> Self {
        // A database that is ahead of this build is fine: that is what a rollback looks like.
        migrator.set_locking(false).set_ignore_missing(true);
        Self { migrator, ..self }
    }

    /// The newest migration of this build.
    pub fn expected_version() -> i64 {
        MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0)
    }

    /// The newest migration that the database has; `None` when it was never migrated.
    pub async fn current_version(c: &mut PgConnection) -> crate::Result<Option<i64>> {
        let found: Result<Option<i64>, _> =
            sqlx::query_scalar("select max(version) from _sqlx_migrations where success").fetch_one(c).await;
        match found {
            // 42P01: there is no such table yet.
            Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("42P01") => Ok(None),
            other => Ok(other?),
        }
    }

    /// Waits until the server takes connections: a container may start before its database does. A wrong password or name is
    /// not waited for.
    pub async fn wait_for_server(&self, patience: Duration) -> Result<(), MigrateError> {
        let give_up = Instant::now() + patience;
        let mut backoff = runtime::backoff::Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        loop {
            match self.connect_once().await {
                Ok(c) => {
                    let _ = c.close().await;
                    return Ok(());
                }
                Err(error) => {
                    let starting =
                        matches!(&error, sqlx::Error::Database(e) if e.code().as_deref() == Some("57P03"));
                    let worth_it = starting || matches!(error, sqlx::Error::Io(_));
                    if !worth_it || Instant::now() >= give_up {
                        return Err(MigrateError::Connect(crate::database::describe(&error.into())));
                    }
                }
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Applies what is missing; waits for another migrator up to `patience`. Returns how many were applied.
    pub async fn up(&self, patience: Duration) -> Result<usize, MigrateError> {
        self.locked(patience, async |c| {
            let (number, text): (i32, String) = sqlx::query_as(
                "select current_setting('server_version_num')::int, current_setting('server_version')",
            )
            .fetch_one(&mut *c)
            .await?;
            if number < 140_000 {
                return Err(MigrateError::TooOld(text));
            }
            let before = applied(c).await?.len();
            self.migrator.run(&mut *c).await?;
            Ok(applied(c).await?.len() - before)
        })
        .await
    }

    /// Takes back the newest migration; `None` when there is none.
    pub async fn revert(&self, patience: Duration) -> Result<Option<i64>, MigrateError> {
        self.locked(patience, async |c| {
            let versions: Vec<i64> = applied(c).await?.into_iter().map(|(v, _)| v).collect();
            let Some((last, rest)) = versions.split_last() else { return Ok(None) };
            if !self.migrator.version_exists(*last) {
                return Err(MigrateError::Newer(*last));
            }
            self.migrator.undo(&mut *c, rest.last().copied().unwrap_or(0)).await?;
            Ok(Some(*last))
        })
        .await
    }

    /// Takes back everything. All data is lost.
    pub async fn reset(&self, patience: Duration) -> Result<(), MigrateError> {
        self.locked(patience, async |c| Ok(self.migrator.undo(&mut *c, 0).await?)).await
    }

    /// Every migration of this build and of the database, in order.
    pub async fn status(&self) -> Result<Vec<Migration>, MigrateError> {
        let mut c = self.connect().await?;
        let applied = applied(&mut c).await?;
        let mut all: Vec<Migration> = self
            .migrator
            .iter()
            .filter(|m| !m.migration_type.is_down_migration())
            .map(|m| Migration {
                version: m.version,
                description: m.description.to_string(),
                status: if applied.iter().any(|(v, _)| *v == m.version) {
                    MigrationStatus::Applied
                } else {
                    MigrationStatus::Pending
                },
            })
            .collect();
        for (version, description) in applied {
            if !self.migrator.version_exists(version) {
                all.push(Migration { version, description, status: MigrationStatus::Unknown });
            }
        }
        all.sort_by_key(|m| m.version);
        Ok(all)
    }

    async fn connect(&self) -> Result<PgConnection, MigrateError> {
        self.connect_once().await.map_err(|e| MigrateError::Connect(crate::database::describe(&e.into())))
    }

    /// A server that takes the connection and then says nothing must not hold a deploy up for ever.
    async fn connect_once(&self) -> Result<PgConnection, sqlx::Error> {
        let attempt = tokio::time::timeout(CONNECT, self.options.connect()).await;
        attempt.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    async fn locked<T>(
        &self,
        patience: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, MigrateError>,
    ) -> Result<T, MigrateError> {
        let mut c = self.connect().await?;
        let give_up = Instant::now() + patience;
        loop {
            let got: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
                .bind(LOCK_KEY)
                .fetch_one(&mut c)
                .await?;
            if got {
                break;
            }
            if Instant::now() >= give_up {
                return Err(MigrateError::Locked(patience));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let result = work(&mut c).await;
        // The lock goes with the connection.
        let _ = c.close().await;
        result
    }
}

async fn applied(c: &mut PgConnection) -> Result<Vec<(i64, String)>, MigrateError> {
    let rows =
        sqlx::query_as("select version, description from _sqlx_migrations where success order by version")
            .fetch_all(c)
            .await;
    match rows {
        Err(sqlx::Error::Database(e)) if e.code().as_deref() == Some("42P01") => Ok(Vec::new()),
        other => Ok(other?),
    }
}
