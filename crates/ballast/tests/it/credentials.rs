//! Credentials of other systems: they go in, jobs use them, and nobody sees them again.

use std::time::Duration;

use engine_sim::{Sim, SimConfig};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use test_support::{TestDatabase, TestRedis, test_redis};
use uuid::Uuid;

use crate::{
    cli::run,
    support::{Collector, Persona, Process, TestApp, eventually, free_port, insert_user},
};

const GOOD: &str = "sk-canary-0123456789-good";
const OLD: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const NEW: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

/// A provider that accepts [`GOOD`] alone, and an app whose users may store credentials for it.
async fn app() -> (Sim, TestApp) {
    let config = SimConfig { api_key: Some(GOOD.to_owned()), ..SimConfig::instant() };
    let provider = Sim::start(config).await;
    let providers = format!("sim={}/v1,nowhere=http://127.0.0.1:1/v1", provider.url());
    let app = TestApp::with(&[("CREDENTIAL_PROVIDERS", &providers), ("CHANNEL_ENCRYPTION_KEY", OLD)]).await;
    (provider, app)
}

fn body(name: &str, provider: &str, secret: &str) -> Value {
    json!({ "name": name, "provider": provider, "secret": secret })
}

async fn store(user: &Persona, name: &str, provider: &str, secret: &str) -> Uuid {
    let stored = user.post("/v1/credentials", body(name, provider, secret)).await.expect(201).json();
    stored["id"].as_str().unwrap().parse().unwrap()
}

async fn listed(user: &Persona, name: &str) -> Value {
    let all = user.get("/v1/credentials").await.expect(200).json();
    all["data"].as_array().unwrap().iter().find(|c| c["name"] == name).cloned().unwrap_or_default()
}

async fn user_id(user: &Persona) -> Uuid {
    user.get("/v1/me").await.expect(200).json()["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_credential_is_stored_tried_by_a_job_and_never_shown() {
    let (provider, app) = app().await;
    let user = app.user().await;
    let stored = user.post("/v1/credentials", body("mine", "sim", GOOD)).await.expect(201);
    store(&user, "wrong", "sim", "sk-canary-wrong").await;
    assert_eq!(stored.json()["status"], "unchecked");
    app.run_pending_jobs().await;
    assert_eq!(provider.stats().requests_total, 2, "both were tried at the provider");
    let list = user.get("/v1/credentials").await.expect(200);
    let (mine, wrong) = (listed(&user, "mine").await, listed(&user, "wrong").await);
    assert_eq!((&mine["status"], &mine["ends_with"]), (&json!("ok"), &json!("good")));
    assert_eq!(
        (&wrong["status"], &wrong["status_detail"]),
        (&json!("failed"), &json!("the provider refuses it"))
    );
    assert_eq!(wrong["ends_with"], Value::Null, "four of fifteen characters would be too many");
    assert!(mine["checked_at"].is_string());
    for text in [stored.text, list.text] {
        assert!(!text.contains("canary"), "{text}");
    }
    // Asked for by its owner, it is tried again.
    let again = json!({ "kind": "check_credential", "args": { "credential_id": mine["id"] } });
    let job = user.post("/v1/jobs", again).await.expect(202).header("location").to_owned();
    app.run_pending_jobs().await;
    assert_eq!(user.get(&job).await.expect(200).json()["result"], json!({ "status": "ok" }));
    let path = format!("/v1/credentials/{}", mine["id"].as_str().unwrap());
    user.delete(&path).await.expect(204);
    user.delete(&path).await.problem(404, "not_found");
    assert_eq!(listed(&user, "mine").await, Value::Null);
    let events: Vec<String> =
        sqlx::query_scalar("select event from audit_log where event like 'credential_%' order by id")
            .fetch_all(app.database.pool())
            .await
            .unwrap();
    assert_eq!(events, ["credential_created", "credential_created", "credential_deleted"]);
}

#[tokio::test]
async fn a_provider_that_does_not_answer_is_asked_again_before_its_credential_is_called_failed() {
    let (_provider, app) = app().await;
    let user = app.user().await;
    // Of the new account: the mail that confirms its address.
    app.run_pending_jobs().await;
    store(&user, "mine", "nowhere", GOOD).await;
    let mut attempts = 0;
    while attempts < 4 {
        assert_eq!(listed(&user, "mine").await["status"], "unchecked");
        // A backoff may be next to nothing: then two attempts run at once.
        attempts += app.run_pending_jobs().await;
        let mut conn = app.database.pool().acquire().await.unwrap();
        jobs::testing::fast_forward(&mut conn, Duration::from_secs(3_600)).await;
    }
    assert_eq!(attempts, 4);
    let mine = listed(&user, "mine").await;
    assert_eq!(
        (&mine["status"], &mine["status_detail"]),
        (&json!("failed"), &json!("the provider does not answer as it should"))
    );
    let errors: Vec<Value> = sqlx::query_scalar("select to_jsonb(j) from job_done j")
        .fetch_all(app.database.pool())
        .await
        .unwrap();
    assert!(!json!(errors).to_string().contains("canary"), "{errors:?}");
}

/// Case H12, for this resource.
#[tokio::test]
async fn somebody_elses_credential_is_as_if_it_were_not_there() {
    let (provider, app) = app().await;
    let (user, stranger) = (app.user().await, app.user().await);
    let id = store(&user, "mine", "sim", GOOD).await;
    sqlx::query("delete from job").execute(app.database.pool()).await.unwrap();
    assert_eq!(listed(&stranger, "mine").await, Value::Null);
    let mut answers = Vec::new();
    for id in [id, Uuid::now_v7()] {
        let mut refused =
            stranger.delete(&format!("/v1/credentials/{id}")).await.problem(404, "not_found").json();
        refused["request_id"] = Value::Null;
        let check = json!({ "kind": "check_credential", "args": { "credential_id": id } });
        let job = stranger.post("/v1/jobs", check).await.expect(202).header("location").to_owned();
        app.run_pending_jobs().await;
        let job = stranger.get(&job).await.expect(200).json();
        assert_eq!(job["state"], "discarded");
        answers.push((refused, job["errors"][0]["error"].clone()));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(provider.stats().requests_total, 0, "the secret was not used");
    assert_eq!(listed(&user, "mine").await["status"], "unchecked");
}

#[tokio::test]
async fn only_people_store_credentials_and_only_while_their_session_lives() {
    let (_provider, app) = app().await;
    let user = app.user().await;
    let id = store(&user, "mine", "sim", GOOD).await;
    let key = app.api_key(&user, &["ai", "jobs"]).await;
    key.post("/v1/credentials", body("other", "sim", GOOD)).await.problem(403, "session_required");
    key.get("/v1/credentials").await.problem(403, "session_required");
    key.delete(&format!("/v1/credentials/{id}")).await.problem(403, "session_required");
    sqlx::query("update session set revoked_at = now()").execute(app.database.pool()).await.unwrap();
    user.post("/v1/credentials", body("other", "sim", GOOD)).await.problem(401, "revoked");
    user.get("/v1/credentials").await.problem(401, "revoked");
    user.delete(&format!("/v1/credentials/{id}")).await.problem(401, "revoked");
}

#[tokio::test]
async fn what_is_no_credential_is_refused_and_nothing_of_it_is_repeated() {
    let (_provider, app) = app().await;
    let user = app.user().await;
    let long = "canary".repeat(700);
    for wrong in [
        body("", "sim", GOOD),
        body(&"x".repeat(101), "sim", GOOD),
        body("nul\0", "sim", GOOD),
        body("x", "openai", GOOD),
        body("x", "", GOOD),
        body("x", "sim", "canary"),
        body("x", "sim", &long),
        body("x", "sim", "canary with blanks"),
        body("x", "sim", "canary\r\nx-other: header"),
        body("x", "sim", "canary\0canary"),
        body("x", "sim", "canary-ünd-umlaut"),
        json!({ "name": "x", "provider": "sim", "secret": ["canary-canary"] }),
        json!({ "name": "x", "provider": "sim", "secret": { "canary": "canary" } }),
        json!({ "name": "x", "provider": "sim", "secret": GOOD, "user_id": "canary" }),
        json!({ "name": "x", "provider": "sim" }),
    ] {
        let refused = user.post("/v1/credentials", wrong).await.problem(422, "invalid");
        assert!(!refused.text.contains("canary"), "{}", refused.text);
    }
    user.post("/v1/credentials", body("x", "sim", &"x".repeat(9_000))).await.problem(413, "body_too_large");
    user.delete("/v1/credentials/canary").await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_taken_once_for_each_user_and_a_hundred_are_the_most() {
    let (_provider, app) = app().await;
    let (user, other) = (app.user().await, app.user().await);
    store(&user, "mine", "sim", GOOD).await;
    user.post("/v1/credentials", body(" mine ", "sim", GOOD)).await.problem(409, "name_taken");
    store(&other, "mine", "sim", GOOD).await;
    sqlx::query(
        "insert into credential (id, user_id, name, provider, key_id, sealed)
         select gen_random_uuid(), user_id, 'n' || n, provider, key_id, sealed
         from credential, generate_series(1, 97) n where user_id = $1",
    )
    .bind(user_id(&user).await)
    .execute(app.database.pool())
    .await
    .unwrap();
    let more = (0..10).map(|n| {
        let user = user.clone();
        async move { user.post("/v1/credentials", body(&format!("more {n}"), "sim", GOOD)).await }
    });
    let mut statuses: Vec<u16> = join_all(more).await.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 201, 409, 409, 409, 409, 409, 409, 409, 409]);
    user.post("/v1/credentials", body("one more", "sim", GOOD)).await.problem(409, "too_many_credentials");
}

#[tokio::test]
async fn a_ciphertext_that_is_moved_to_another_row_or_user_opens_nothing() {
    let (provider, app) = app().await;
    let (user, thief) = (app.user().await, app.user().await);
    let mine = store(&user, "mine", "sim", GOOD).await;
    let (second, theirs) =
        (store(&user, "second", "sim", GOOD).await, store(&thief, "theirs", "sim", GOOD).await);
    for row in [second, theirs] {
        sqlx::query(
            "update credential set sealed = (select sealed from credential where id = $1) where id = $2",
        )
        .bind(mine)
        .bind(row)
        .execute(app.database.pool())
        .await
        .unwrap();
    }
    let context = app.worker_context();
    let (user, thief) = (user_id(&user).await, user_id(&thief).await);
    let opened = context.open_credential(user, mine).await.unwrap().unwrap();
    assert_eq!(opened.secret.expose_secret(), GOOD);
    assert!(!format!("{opened:?}").contains("canary"));
    for (owner, row) in [(user, second), (thief, theirs)] {
        let error = context.open_credential(owner, row).await.unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&db::SealError::Damaged), "{error:#}");
    }
    assert!(context.open_credential(thief, mine).await.unwrap().is_none());
    app.run_pending_jobs().await;
    assert_eq!(provider.stats().requests_total, 1, "only what could be read was sent");
}

/// The keys that encrypt are exchanged as the runbook says (docs/runbooks/key-rotation.md), over two replicas; at every step
/// every credential can be read.
#[tokio::test(flavor = "multi_thread")]
async fn encryption_keys_are_exchanged_without_losing_a_credential() {
    let (_provider, app) = app().await;
    let user = app.user().await;
    let owner = user_id(&user).await;
    let mut ids = vec![store(&user, "before", "sim", GOOD).await];
    let both = |first: &str, second: &str| format!("{first},{second}");
    // Known everywhere, not yet used; then used.
    let known = app.replica_with(&[("CHANNEL_ENCRYPTION_KEY", &both(OLD, NEW))]);
    ids.push(store(&user.at(&known), "known", "sim", GOOD).await);
    let used = app.replica_with(&[("CHANNEL_ENCRYPTION_KEY", &both(NEW, OLD))]);
    ids.push(store(&user.at(&used), "used", "sim", GOOD).await);
    ids.push(store(&user.at(&known), "meanwhile", "sim", GOOD).await);
    let readable = async |app: &TestApp| {
        let context = app.worker_context();
        for id in &ids {
            let opened = context.open_credential(owner, *id).await.unwrap().unwrap();
            assert_eq!(opened.secret.expose_secret(), GOOD);
        }
    };
    readable(&known).await;
    readable(&used).await;

    let credentials = |action: &str, keys: &str| {
        let vars = [("DATABASE_URL", app.database.url()), ("CHANNEL_ENCRYPTION_KEY", keys)];
        let (code, stdout, stderr) = tokio::task::block_in_place(|| run(&["credentials", action], &vars));
        (code, format!("{stdout}{stderr}"))
    };
    let (code, text) = credentials("status", NEW);
    assert!(code == 1 && text.contains("3 secrets  MISSING"), "{text}");
    // The first batch, by somebody who was interrupted then.
    let keys = |text: &str| text.split(',').map(|k| k.parse().unwrap()).collect::<Vec<_>>();
    let ring = db::SealingKeys::from_config(&keys(&both(NEW, OLD))).unwrap();
    let mut conn = app.database.pool().acquire().await.unwrap();
    assert_eq!(db::credentials::reseal(&mut conn, &ring, Uuid::nil(), 1).await.unwrap().done, 1);
    let (code, text) = credentials("rotate", &both(NEW, OLD));
    assert!(code == 0 && text.contains("2 encrypted anew") && text.contains("0 failed"), "{text}");
    let (code, text) = credentials("rotate", &both(NEW, OLD));
    assert!(code == 0 && text.contains("0 encrypted anew"), "{text}");
    readable(&known).await;
    let gone = app.replica_with(&[("CHANNEL_ENCRYPTION_KEY", NEW)]);
    readable(&gone).await;
    assert_eq!(credentials("status", NEW).0, 0);

    // What cannot be read is named, and does not keep the rest from being done.
    let damage =
        "update credential set sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1) where id = $1";
    sqlx::query(damage).bind(ids[0]).execute(&mut *conn).await.unwrap();
    let (code, text) = credentials("rotate", &both(OLD, NEW));
    assert!(code == 1 && text.contains(&ids[0].to_string()) && text.contains("3 encrypted anew"), "{text}");
    assert!(!text.contains(OLD) && !text.contains(NEW) && !text.contains("canary"), "{text}");
    let (code, text) = credentials("status", "hunter2hunter2");
    assert!(code == 78 && text.contains("CHANNEL_ENCRYPTION_KEY") && !text.contains("hunter2"), "{text}");
}

/// Every row of every table, as text.
async fn dump_of_postgres(database: &TestDatabase) -> String {
    let tables: Vec<String> =
        sqlx::query_scalar("select quote_ident(tablename) from pg_tables where schemaname = 'public'")
            .fetch_all(database.pool())
            .await
            .unwrap();
    assert!(tables.len() > 10, "{tables:?}");
    let mut dump = String::new();
    for table in tables {
        let rows = sqlx::query_scalar(AssertSqlSafe(format!("select t::text from {table} t")));
        let rows: Vec<String> = rows.fetch_all(database.pool()).await.unwrap();
        dump.push_str(&rows.join("\n"));
    }
    dump
}

/// Every key of this test with its value, as text.
async fn dump_of_redis(redis: &TestRedis) -> String {
    use db::redis_client::{Value, cmd};
    let mut conn = redis.connection().await;
    let keys: Vec<String> =
        cmd("KEYS").arg(format!("{}*", redis.prefix)).query_async(&mut conn).await.unwrap();
    let mut dump = String::new();
    for key in keys {
        let kind: String = cmd("TYPE").arg(&key).query_async(&mut conn).await.unwrap();
        let read = match kind.as_str() {
            "hash" => cmd("HGETALL").arg(&key).take(),
            "zset" => cmd("ZRANGE").arg(&key).arg(0).arg(-1).take(),
            "string" => cmd("GET").arg(&key).take(),
            // Expired meanwhile.
            "none" => continue,
            other => panic!("a {other}: {key}"),
        };
        let value: Value = read.query_async(&mut conn).await.unwrap();
        dump.extend([key, format!(" {value:?}\n")]);
    }
    dump
}

/// Case H10, for stored credentials: the real process, with everything going wrong that can.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_secret_reaches_no_log_no_error_report_no_answer_and_no_dump() {
    const CANARY: &str = "sk-canary-7f3a-of-a-user";
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let collector = Collector::start().await;
    let address = &collector.address;
    let refusing = Sim::start(SimConfig { api_key: Some(GOOD.to_owned()), ..SimConfig::instant() }).await;
    let providers = format!("refusing={}/v1,nowhere=http://127.0.0.1:1/v1", refusing.url());
    let (port, dsn) = (free_port(), format!("http://key@{address}/1"));
    let port_text = port.to_string();
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("CREDENTIAL_PROVIDERS", providers.as_str()),
        ("CHANNEL_ENCRYPTION_KEY", OLD),
        ("SENTRY_DSN", dsn.as_str()),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug"),
    ];
    let mut all = Process::start(&["all"], &vars);
    let url = format!("http://127.0.0.1:{port}");
    let client = reqwest::Client::builder().build().unwrap();
    eventually("readiness", Duration::from_secs(30), async || {
        client.get(format!("{url}/readyz")).send().await.is_ok_and(|r| r.status() == 200)
    })
    .await;
    let account = json!({ "email": "a@example.com", "password": crate::support::PASSWORD });
    let post = |path: &str, body: &Value| client.post(format!("{url}{path}")).json(body);
    insert_user(database.pool(), "a@example.com", "user").await;
    let tokens: Value = post("/v1/auth/login", &account).send().await.unwrap().json().await.unwrap();
    let token = tokens["access_token"].as_str().unwrap();
    let mut answers = String::new();
    let mut store = async |path: &str, body: &Value| {
        let answer = post(path, body).bearer_auth(token).send().await.unwrap();
        let status = answer.status().as_u16();
        answers.push_str(&answer.text().await.unwrap());
        status
    };
    assert_eq!(store("/v1/credentials", &body("one", "refusing", CANARY)).await, 201);
    assert_eq!(store("/v1/credentials", &body("one", "refusing", CANARY)).await, 409);
    assert_eq!(store("/v1/credentials", &body("two", "nowhere", CANARY)).await, 201);
    assert_eq!(store("/v1/credentials", &body(CANARY, CANARY, CANARY)).await, 422);
    assert_eq!(store("/v1/credentials", &json!({ "secret": [CANARY] })).await, 422);
    assert_eq!(store(&format!("/v1/credentials?secret={CANARY}"), &json!({})).await, 422);
    eventually("the jobs have tried", Duration::from_secs(20), async || {
        let tried: i64 = sqlx::query_scalar(
            "select (select count(*) from job where kind = 'check_credential' and attempt > 0)
                  + (select count(*) from job_done where kind = 'check_credential')",
        )
        .fetch_one(database.pool())
        .await
        .unwrap();
        tried == 2
    })
    .await;
    let dump = dump_of_postgres(&database).await;
    // A fault of ours in the middle of it.
    sqlx::query("alter table credential rename column sealed to gone")
        .execute(database.pool())
        .await
        .unwrap();
    assert_eq!(store("/v1/credentials", &body("three", "refusing", CANARY)).await, 500);
    all.signal(Signal::SIGTERM);
    let (status, _) = all.wait(Duration::from_secs(15)).await;
    assert!(status.success(), "{}", all.output());

    let (log, sentry, redis) = (all.output(), collector.text("/api/1/envelope"), dump_of_redis(&redis).await);
    assert!(
        log.contains("check_credential") && sentry.contains("request failed") && dump.contains("refusing")
    );
    assert!(redis.contains("v1:rl:"), "{redis}");
    let hex = api::auth::hex(CANARY.as_bytes());
    for (place, text) in
        [("log", log), ("sentry", sentry), ("answers", answers), ("postgres", dump), ("redis", redis)]
    {
        for form in [CANARY, hex.as_str(), "7f3a-of-a", OLD] {
            assert!(!text.contains(form), "{place} holds {form}: {text}");
        }
    }
}
