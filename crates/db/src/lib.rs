//! Postgres and Redis.
//!
//! **Postgres** is the truth. SQL is plain functions on `&mut PgConnection`, one module per table group, checked at compile
//! time against the committed `.sqlx`. [`Database::call`] lends a connection under a deadline:
//!
//! ```no_run
//! # async fn example(database: db::Database, id: uuid::Uuid) -> db::Result<()> {
//! let user = database.call("users.find", async |c| db::users::find(c, id).await).await?;
//! # Ok(()) }
//! ```
//!
//! **Redis** holds only what may be lost: limits, revocation marks, caches. [`Redis`] fails fast, and what needs it must
//! say what it does without.

pub mod api_keys;
pub mod audit;
pub mod backfills;
pub mod credentials;
mod database;
pub mod documents;
mod error;
pub mod invitations;
mod migrate;
pub mod one_time_tokens;
mod redis;
pub mod runs;
pub mod seal;
pub mod sessions;
pub mod subscriptions;
pub mod usage;
pub mod users;
pub mod webhook_deliveries;
pub mod webhook_endpoints;
pub mod webhook_events;

pub use database::Database;
pub use deadpool_redis::redis::{self as redis_client};
pub use error::{Error, Result};
pub use migrate::{MigrateError, Migration, MigrationStatus, Migrations};
pub use redis::{Incarnation, Redis, RedisError};
pub use seal::{SealError, Sealed, SealingKeys};
pub use sqlx::PgConnection;
