//! Databases on the given Postgres: a fresh one for each measurement, dropped after it.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub(crate) struct Server {
    options: PgConnectOptions,
}

impl Server {
    pub(crate) async fn new(url: &str) -> Result<Self> {
        let options: PgConnectOptions = url.parse().context("DATABASE_URL")?;
        let mut conn = PgConnection::connect_with(&options).await.context("cannot connect")?;
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let sql = AssertSqlSafe(format!("select current_setting('{setting}')"));
            let value: String = sqlx::query_scalar(sql).fetch_one(&mut conn).await?;
            ensure!(value == "on", "{setting} is {value}: figures without it mean nothing");
        }
        Ok(Self { options })
    }

    /// An empty database; ours gets the project's migrations, the peer makes its own schema.
    pub(crate) async fn database(&self, name: &str, migrate: bool) -> Result<Database> {
        let mut conn = PgConnection::connect_with(&self.options).await?;
        conn.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
        conn.execute(AssertSqlSafe(format!("create database {name} template template0"))).await?;
        let options = self.options.clone().database(name);
        if migrate {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
            let mut conn = PgConnection::connect_with(&options).await?;
            Migrator::new(dir).await?.run(&mut conn).await?;
        }
        // The size that the project's configuration has by default.
        let pool = PgPoolOptions::new()
            .min_connections(5)
            .max_connections(10)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await?;
        // What one measurement wrote shall not be flushed during the next.
        conn.execute("checkpoint").await?;
        Ok(Database { admin: conn, name: name.to_owned(), options, pool })
    }
}

pub(crate) struct Database {
    admin: PgConnection,
    name: String,
    pub(crate) options: PgConnectOptions,
    pub(crate) pool: PgPool,
}

impl Database {
    pub(crate) async fn execute(&self, sql: &str) -> Result<()> {
        self.pool.execute(AssertSqlSafe(sql.to_owned())).await?;
        Ok(())
    }

    pub(crate) async fn is_true(&self, sql: &str) -> Result<bool> {
        Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await?)
    }

    pub(crate) async fn drop(mut self) -> Result<()> {
        self.pool.close().await;
        let sql = format!("drop database if exists {} with (force)", self.name);
        self.admin.execute(AssertSqlSafe(sql)).await?;
        Ok(())
    }
}
