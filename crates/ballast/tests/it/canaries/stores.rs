//! Everything that the stores hold, as text.

use std::fmt::Write as _;

use db::redis_client::{Cmd, Value, aio::MultiplexedConnection, cmd};
use sqlx::{AssertSqlSafe, PgPool};

/// Every row of every table.
pub(super) async fn postgres(pool: &PgPool) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.relkind in ('r', 'm') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert!(tables.len() > 8, "{tables:?}");
    let mut dump = String::new();
    for table in tables {
        let sql = format!("select t::text from {table} t");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await.unwrap();
        for row in rows {
            writeln!(dump, "{table}: {row}").unwrap();
        }
    }
    dump
}

/// Every key and its value.
pub(super) async fn redis(c: &mut MultiplexedConnection) -> String {
    let mut dump = String::new();
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<String>) =
            cmd("SCAN").arg(cursor).arg("COUNT").arg(1_000).query_async(c).await.unwrap();
        for key in keys {
            let kind: String = cmd("TYPE").arg(&key).query_async(c).await.unwrap();
            let mut read = match kind.as_str() {
                "string" => cmd("GET"),
                "hash" => cmd("HGETALL"),
                "set" => cmd("SMEMBERS"),
                "zset" => with(cmd("ZRANGE").arg(&key), &["0", "-1", "WITHSCORES"]),
                "list" => with(cmd("LRANGE").arg(&key), &["0", "-1"]),
                "stream" => with(cmd("XRANGE").arg(&key), &["-", "+"]),
                // It expired just now.
                "none" => continue,
                other => panic!("{key} is a {other}: how is that read?"),
            };
            if ["string", "hash", "set"].contains(&kind.as_str()) {
                read.arg(&key);
            }
            let value: Value = read.query_async(c).await.unwrap();
            writeln!(dump, "{key}: {value:?}").unwrap();
        }
        cursor = next;
        if cursor == 0 {
            return dump;
        }
    }
}

fn with(command: &mut Cmd, arguments: &[&str]) -> Cmd {
    command.arg(arguments);
    command.clone()
}
