//! SQL in everything that is text: it is data, or it is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{NOBODYS, World, fresh_body, request, resources::behind, send, texts, with};
use crate::support::{Answer, Operation};

/// Each ends a text, a number or an identifier that somebody pasted into a statement.
const SQL: [&str; 10] = [
    "'",
    "' or '1'='1",
    "'; delete from users; --",
    "x'); drop table job cascade; --",
    "1 or 1=1",
    "1; select pg_sleep(30)--",
    "' || pg_sleep(30) || '",
    "\" or \"\"=\"",
    "$$; truncate users cascade; $$",
    "name desc, (select password_hash from users limit 1)",
];

/// How many rows each table has.
async fn rows(world: &World) -> BTreeMap<String, i64> {
    let pool = world.app.database.pool();
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables \
         where table_schema = 'public' and table_type = 'BASE TABLE' order by 1",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut rows = BTreeMap::new();
    for table in tables {
        let count = sqlx::AssertSqlSafe(format!("select count(*) from \"{table}\""));
        rows.insert(table, sqlx::query_scalar(count).fetch_one(pool).await.unwrap());
    }
    rows
}

/// What a request added to each table.
fn grown(before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    assert!(before.keys().eq(after.keys()), "tables came or went: {before:?}, {after:?}");
    after
        .iter()
        .map(|(table, count)| (table.clone(), count - before[table]))
        .filter(|(_, d)| *d != 0)
        .collect()
}

/// Every value under this name, at any depth.
fn named<'a>(value: &'a Value, name: &str, out: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(k, v)| {
            if k == name {
                out.push(v);
            }
            named(v, name, out);
        }),
        Value::Array(items) => items.iter().for_each(|v| named(v, name, out)),
        _ => {}
    }
}

/// Sends it, and says how many rows it made.
async fn measured(
    world: &World,
    who: &crate::support::Persona,
    request: reqwest::RequestBuilder,
) -> (Answer, BTreeMap<String, i64>) {
    // Usage is written beside the requests.
    world.app.state.ai.flush_usage().await;
    let before = rows(world).await;
    let started = Instant::now();
    let answer = send(who, request).await;
    assert!(started.elapsed() < Duration::from_secs(20), "it slept: {}", answer.text);
    world.app.state.ai.flush_usage().await;
    (answer, grown(&before, &rows(world).await))
}

/// What a refused request may leave behind: that somebody tried, and that the engine was asked.
fn but_for_the_log(made: &BTreeMap<String, i64>) -> bool {
    made.keys().all(|table| matches!(table.as_str(), "audit_log" | "usage_event"))
}

/// Case H7, for bodies.
#[tokio::test]
async fn sql_in_a_body_is_stored_as_it_is_or_refused() {
    let world = World::start().await;
    let (mut stored, mut refused) = (0, 0);
    for operation in Operation::all() {
        let Some(example) = fresh_body(operation) else { continue };
        let who = world.who_may(operation);
        let id = if operation.has_parameter() { behind(operation).make(&world).await } else { None };
        let path = operation.at(id.as_deref().unwrap_or("chat"));
        for at in texts(&example) {
            let send = async |text: &str| {
                let example = fresh_body(operation).expect("it has one");
                let body = with(&example, &at, text);
                measured(&world, who, who.request(operation.method.clone(), &path).json(&body)).await
            };
            // The same as a plain text of the same length does.
            let mut plain = BTreeMap::new();
            for length in BTreeSet::from(SQL.map(str::len)) {
                let (benign, made) = send(&"x".repeat(length)).await;
                plain.insert(length, (benign.status, made));
            }
            for sql in SQL {
                let (answer, made) = send(sql).await;
                assert!(answer.status < 500, "{operation}, {sql} in {at}: {} {}", answer.status, answer.text);
                let (benign, expected) = &plain[&sql.len()];
                let same = (answer.status, &made) == (*benign, expected);
                if answer.status >= 300 {
                    assert!(but_for_the_log(&made), "{operation}, {sql} in {at}: {made:?}");
                    refused += 1;
                    continue;
                }
                assert!(same, "{operation}, {sql} in {at}: {made:?}, and without SQL {benign} {expected:?}");
                let field = at.rsplit('/').next().unwrap_or_default();
                let (mut echoed, body) =
                    (Vec::new(), serde_json::from_str(&answer.text).unwrap_or(Value::Null));
                if !operation.speaks_openai() {
                    named(&body, field, &mut echoed);
                }
                assert!(echoed.iter().all(|value| *value == sql), "{operation} changed {sql}: {body}");
                stored += usize::from(!echoed.is_empty());
            }
        }
    }
    assert!(stored >= SQL.len() && refused > 0, "{stored} stored, {refused} refused");
}

/// Case H7, for paths, queries and headers: ids, cursors, sort orders, filters.
#[tokio::test]
async fn sql_in_an_address_changes_nothing() {
    let world = World::start().await;
    for operation in Operation::all().iter().filter(|o| o.path.starts_with("/v1/")) {
        let who = world.who_may(operation);
        for sql in SQL {
            let mut addresses = Vec::new();
            let encoded: String = url::form_urlencoded::byte_serialize(sql.as_bytes()).collect();
            if operation.has_parameter() {
                addresses.push(operation.at(&encoded.replace('+', "%20")));
            }
            let path = operation.at(NOBODYS);
            addresses.extend(operation.parameters("query").map(|name| format!("{path}?{name}={encoded}")));
            for address in addresses {
                let (answer, made) = measured(&world, who, request(operation, who, &address)).await;
                assert!(answer.status < 500, "{operation}, {address}: {} {}", answer.status, answer.text);
                if answer.status >= 300 {
                    assert!(but_for_the_log(&made), "{operation}, {address}: {made:?}");
                }
            }
            for name in operation.parameters("header") {
                let request = request(operation, who, &path).header(name, sql);
                let (answer, made) = measured(&world, who, request).await;
                assert!(answer.status < 500, "{operation}, {name}: {sql}: {} {}", answer.status, answer.text);
                // The example of a body is good: at most it makes one row of each kind.
                assert!(made.values().all(|more| *more == 1), "{operation}, {name}: {sql}: {made:?}");
            }
        }
    }
    world.user.get("/v1/me").await.expect(200);
}
