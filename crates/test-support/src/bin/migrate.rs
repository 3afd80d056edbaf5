//! Applies the migrations of this checkout to the database whose URL is the only argument.
//!
//! For `cargo xtask prepare`: the `ballast` program cannot be built while the descriptions of its queries are missing,
//! and this one contains none.

use std::path::Path;

use anyhow::{Context, Result};
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let url =
        std::env::args().nth(1).context("usage: migrate postgres://user:password@host:port/database")?;
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let migrator = Migrator::new(migrations).await.context("cannot read the migrations")?;
    let mut connection = PgConnection::connect(&url).await.context("cannot connect")?;
    migrator.run(&mut connection).await.context("a migration failed")?;
    connection.close().await.context("cannot close the connection")
}
