//! A fresh database for each test, copied from a migrated template in milliseconds.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};
use tokio::sync::OnceCell;
use url::Url;
use uuid::Uuid;

use crate::services::{pooler, project, services};

/// Any number; the same in all test processes.
const TEMPLATE_LOCK: i64 = 0x7465_6d70_6c61_7465;
/// Databases of tests that were killed are dropped by a later run once they are this old.
const LEFTOVER_AGE: Duration = Duration::from_hours(1);

/// A database that only this test knows. It is dropped together with the value.
#[derive(Debug)]
pub struct TestDatabase {
    admin_url: String,
    name: String,
    url: String,
    /// By way of the pooler of `TEST_POOLER`.
    pooled: Option<String>,
    pool: PgPool,
}

impl TestDatabase {
    /// A database with all migrations of this checkout applied.
    pub async fn create() -> Self {
        Self::try_create(true).await.unwrap_or_else(|error| panic!("no test database: {error:#}"))
    }

    /// A database without any table, for tests of the migrations themselves.
    pub async fn empty() -> Self {
        Self::try_create(false).await.unwrap_or_else(|error| panic!("no test database: {error:#}"))
    }

    async fn try_create(migrated: bool) -> Result<Self> {
        let admin_url = services().await.database_url.clone();
        let mut admin =
            PgConnection::connect(&admin_url).await.context("cannot connect to the test Postgres")?;
        drop_leftovers(&mut admin).await;
        let template =
            if migrated { template(&mut admin, &admin_url).await? } else { "template0".to_owned() };
        let name = format!("test_{}_{}", unix_seconds(), Uuid::new_v4().simple());
        execute(&mut admin, format!("CREATE DATABASE {name} TEMPLATE {template}")).await?;
        admin.close().await.context("cannot close the connection")?;
        let url = with_database(&admin_url, &name)?;
        let options = PgConnectOptions::from_str(&url).context("the URL of the test database")?;
        // Small: dozens of tests run side by side against one server.
        let pool = PgPoolOptions::new().max_connections(5).connect_lazy_with(options);
        let pooled = pooler().map(|pooler| through(&url, &pooler)).transpose()?;
        Ok(Self { admin_url, name, url, pooled, pool })
    }

    /// Its address, password included.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What a program gets to know of it.
    pub fn variables(&self) -> Vec<(&'static str, &str)> {
        match &self.pooled {
            None => vec![("DATABASE_URL", &self.url)],
            Some(pooled) => vec![("DATABASE_URL", pooled), ("DATABASE_DIRECT_URL", &self.url)],
        }
    }

    /// A small pool, connected on first use.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Its name on the server.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (url, name) = (self.admin_url.clone(), self.name.clone());
        // A runtime of its own: the test's may be shutting down, and drop cannot wait for it. What fails here is
        // dropped by a later run.
        let (done, dropped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let mut admin = PgConnection::connect(&url).await.ok()?;
                execute(&mut admin, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.ok()?;
                admin.close().await.ok()
            })?;
            done.send(()).ok()
        });
        // Not longer: Postgres waits for connections that are just being made (for `authentication_timeout`, a minute), and
        // one of this test's cannot go on while this blocks its runtime. It drops the database all the same.
        let _ = dropped.recv_timeout(Duration::from_secs(2));
    }
}

/// Name of the migrated template for the present migrations; the first to ask makes it.
async fn template(admin: &mut PgConnection, admin_url: &str) -> Result<String> {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let made = TEMPLATE.get_or_try_init(|| async {
        let project = project()?;
        let name = format!("ballast_template_{}", project.fingerprint("migrations")?);
        if exists(admin, &name).await? {
            return anyhow::Ok(name);
        }
        // Held by the session: a test that is killed here gives it back.
        sqlx::query("SELECT pg_advisory_lock($1)").bind(TEMPLATE_LOCK).execute(&mut *admin).await?;
        let outcome = if exists(admin, &name).await? {
            Ok(())
        } else {
            let migrations =
                Migrator::new(project.root().join("migrations")).await.context("cannot read migrations")?;
            make_template(admin, admin_url, &name, migrations).await
        };
        sqlx::query("SELECT pg_advisory_unlock($1)").bind(TEMPLATE_LOCK).execute(&mut *admin).await?;
        outcome.map(|()| name)
    });
    made.await.cloned()
}

/// Made under another name first, so that a template that exists is always complete.
async fn make_template(
    admin: &mut PgConnection,
    admin_url: &str,
    name: &str,
    migrations: Migrator,
) -> Result<()> {
    let building = format!("{name}_building");
    execute(admin, format!("DROP DATABASE IF EXISTS {building} WITH (FORCE)")).await?;
    execute(admin, format!("CREATE DATABASE {building} TEMPLATE template0")).await?;
    let mut connection = PgConnection::connect(&with_database(admin_url, &building)?).await?;
    migrations.run(&mut connection).await.context("a migration failed on an empty database")?;
    connection.close().await?;
    // Nobody may connect: CREATE DATABASE refuses a template that is in use.
    execute(admin, format!("ALTER DATABASE {building} WITH ALLOW_CONNECTIONS false")).await?;
    execute(admin, format!("ALTER DATABASE {building} RENAME TO {name}")).await
}

async fn exists(admin: &mut PgConnection, name: &str) -> Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(admin)
        .await
        .context("cannot list the databases")
}

/// Removes databases of tests that were killed. Another process may be doing the same, so failures are ignored.
async fn drop_leftovers(admin: &mut PgConnection) {
    static ONCE: OnceCell<()> = OnceCell::const_new();
    ONCE.get_or_init(|| async {
        let limit = unix_seconds().saturating_sub(LEFTOVER_AGE.as_secs()).cast_signed();
        let old: Vec<String> = sqlx::query_scalar(
            "SELECT datname::text FROM pg_database d \
             WHERE datname ~ '^test_[0-9]{1,18}_[0-9a-f]{32}$' AND split_part(datname, '_', 2)::bigint < $1 \
             AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datname = d.datname)",
        )
        .bind(limit)
        .fetch_all(&mut *admin)
        .await
        .unwrap_or_default();
        for name in old {
            let _ = execute(admin, format!("DROP DATABASE IF EXISTS {name}")).await;
        }
    })
    .await;
}

/// Runs a statement whose names are made in this file: they cannot be bound as parameters.
async fn execute(connection: &mut PgConnection, sql: String) -> Result<()> {
    let shown = sql.clone();
    connection.execute(AssertSqlSafe(sql)).await.map(drop).with_context(|| format!("failed: {shown}"))
}

fn with_database(url: &str, name: &str) -> Result<String> {
    let mut url = Url::parse(url).context("the URL of the test Postgres")?;
    url.set_path(name);
    Ok(url.into())
}

/// The same database by way of this `HOST:PORT`.
fn through(url: &str, pooler: &str) -> Result<String> {
    let mut url = Url::parse(url).context("the URL of the test Postgres")?;
    let way = pooler.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = way.context("TEST_POOLER is HOST:PORT")?;
    url.set_host(Some(host)).context("the host in TEST_POOLER")?;
    url.set_port(Some(port)).map_err(|()| anyhow::anyhow!("the URL takes no port"))?;
    Ok(url.into())
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
