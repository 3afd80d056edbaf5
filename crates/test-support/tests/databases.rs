//! A database and a Redis prefix per test.

use std::time::Instant;

use deadpool_redis::redis::AsyncCommands;
use sqlx::{Connection, PgConnection};
use test_support::{OwnServices, TestDatabase, services, test_redis};

#[tokio::test]
async fn each_test_gets_its_own_migrated_database() {
    let (one, two) = tokio::join!(TestDatabase::create(), TestDatabase::create());
    assert_ne!(one.name(), two.name());
    sqlx::query("CREATE TABLE only_here (id int)").execute(one.pool()).await.unwrap();
    let in_two: Option<String> =
        sqlx::query_scalar("SELECT to_regclass('only_here')::text").fetch_one(two.pool()).await.unwrap();
    assert_eq!(in_two, None);
    let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success")
        .fetch_one(two.pool())
        .await
        .unwrap();
    let written = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".up.sql"))
        .count();
    assert_eq!(applied, i64::try_from(written).unwrap());
}

#[tokio::test]
async fn a_database_is_gone_after_its_test() {
    let database = TestDatabase::create().await;
    let name = database.name().to_owned();
    sqlx::query("SELECT 1").execute(database.pool()).await.unwrap();
    drop(database);
    let mut admin = PgConnection::connect(&services().await.database_url).await.unwrap();
    let left: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert!(!left);
}

#[tokio::test]
async fn an_empty_database_has_no_tables() {
    let database = TestDatabase::empty().await;
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .fetch_one(database.pool())
        .await
        .unwrap();
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn redis_prefixes_keep_tests_apart() {
    let (one, two) = (test_redis().await, test_redis().await);
    assert_ne!(one.prefix, two.prefix);
    let mut connection = one.connection().await;
    let _: () = connection.set(format!("{}x", one.prefix), 1).await.unwrap();
    let seen: Option<i32> = connection.get(format!("{}x", two.prefix)).await.unwrap();
    assert_eq!(seen, None);
}

#[tokio::test]
async fn own_servers_come_back_after_kill_9_with_their_data() {
    let own = OwnServices::start().await;
    let url = own.database_url.clone();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE kept AS SELECT 7 AS n").execute(&mut connection).await.unwrap();
    own.postgres().signal_group(nix::sys::signal::Signal::SIGKILL);
    own.redis().signal_group(nix::sys::signal::Signal::SIGKILL);
    let started = Instant::now();
    let own = own.restart().await;
    assert!(started.elapsed().as_secs() < 30);
    let mut connection = PgConnection::connect(&own.database_url).await.unwrap();
    let n: i32 = sqlx::query_scalar("SELECT n FROM kept").fetch_one(&mut connection).await.unwrap();
    assert_eq!(n, 7);
    assert_eq!(own.database_url, url, "the port stays the same");
}
