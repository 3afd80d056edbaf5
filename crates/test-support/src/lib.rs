//! What integration tests stand on: a database per test, a Redis prefix per test, and a proxy that breaks connections.
//!
//! ```no_run
//! # async fn example() {
//! let database = test_support::TestDatabase::create().await; // migrated, empty, dropped at the end
//! let redis = test_support::test_redis().await; // everything of this test under `redis.prefix`
//! let answer: i32 = sqlx::query_scalar("SELECT 42").fetch_one(database.pool()).await.unwrap();
//! # }
//! ```
//!
//! The servers come from `TEST_DATABASE_URL` and `TEST_REDIS_URL`; `cargo verify` sets them. Without them the first
//! test of a plain `cargo test` starts a shared throw-away pair, which stops after five minutes without tests
//! ([`devstack::shared`]). A test that stops or pauses a server takes a pair of its own: [`OwnServices`].
//!
//! Everything panics with the reason when it cannot be had: in a test there is nothing better to do.
#![expect(
    clippy::disallowed_methods,
    reason = "serves tests only: nothing here runs in, or shuts down with, the program"
)]

mod database;
mod own;
mod proxy;
mod redis;
mod services;

pub use database::TestDatabase;
pub use own::OwnServices;
pub use proxy::{FaultProxy, Mode};
pub use redis::{TestRedis, test_redis};
pub use services::{nginx, services};

pub use devstack::shared::TestServices;
