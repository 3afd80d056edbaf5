//! Secrets with a mark in every place where there is one, every route used and abused, the stores failing in between; then
//! everything that the processes said and stored is searched for the marks.

mod abuse;
mod scenario;
mod secrets;
mod stores;
mod world;

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Router,
    http::{HeaderMap, StatusCode, Uri},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::PgPool;
use test_support::{FaultProxy, Mode, OwnServices};

use self::{
    scenario::People,
    secrets::{Class, Place, Secrets},
    world::{Who, World},
};
use crate::support::{Collector, Process, eventually, free_port, ready};

const S: fn(u64) -> Duration = Duration::from_secs;

/// Operations that cannot succeed here, each with the reason.
const WITHOUT_SUCCESS: [(&str, &str); 1] = [("GET /v1/admin/mails", "shows mails in development only")];

/// Commands that say something; each ends with 0.
const COMMANDS: [&str; 12] = [
    "keygen",
    "migrate status",
    "user create cli@example.com",
    "user promote cli@example.com",
    "user demote cli@example.com",
    "user disable cli@example.com",
    "user enable cli@example.com",
    "user list",
    "credentials status",
    "jobs queues",
    "jobs list",
    "jobs cron",
];

/// An engine that shows in its errors which credential it was given, as some gateways do.
async fn telltale_engine() -> String {
    let router = Router::new().fallback(|uri: Uri, headers: HeaderMap| async move {
        let credential = headers["authorization"].to_str().unwrap().to_owned();
        let status = if uri.path().ends_with("chat/completions") { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
        let error = json!({ "error": { "message": format!("Incorrect API key provided: {credential}"), "code": "invalid_api_key" } });
        (status, [("content-type", "application/json")], error.to_string())
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/v1")
}

/// The stores, and the way to them.
struct Stores {
    services: OwnServices,
    postgres: FaultProxy,
    redis: FaultProxy,
    /// As the processes know them.
    urls: [String; 2],
}

impl Stores {
    async fn start() -> Self {
        let services = OwnServices::start().await;
        let (postgres, database_url) = FaultProxy::in_front_of(&services.database_url).await;
        let (redis, redis_url) = FaultProxy::in_front_of(&services.redis_url).await;
        Self { services, postgres, redis, urls: [database_url, redis_url] }
    }
}

/// Secrets of the deployment, each with its mark, as variables.
fn deployment_secrets(w: &mut World, stores: &Stores) -> Vec<(String, String)> {
    let random = || [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
    let (seed, server_secret) = (random(), api::auth::hex(&random()));
    let signing_key = URL_SAFE_NO_PAD.encode(&seed);
    w.secrets.learn("JWT_SIGNING_KEY", &signing_key, Class::Secret);
    w.secrets.learn("JWT_SIGNING_KEY", &api::auth::hex(&seed), Class::Secret);
    let (encryption_key, webhook_key) = (api::auth::hex(&random()), STANDARD.encode(random()));
    w.secrets.learn("WEBHOOK_SECRETS", &webhook_key, Class::Secret);
    w.webhook_secret = format!("whsec_{webhook_key}");
    w.secrets.learn("SERVER_SECRET", &server_secret, Class::Secret);
    w.secrets.learn("CHANNEL_ENCRYPTION_KEY", &encryption_key, Class::Secret);
    for url in &stores.urls {
        let url = url::Url::parse(url).unwrap();
        w.secrets.learn(&format!("the password of {}", url.scheme()), url.password().unwrap(), Class::Secret);
    }
    let [database_url, redis_url] = stores.urls.clone();
    let mut vars = vec![
        ("DATABASE_URL".to_owned(), database_url),
        ("REDIS_URL".to_owned(), redis_url),
        ("JWT_SIGNING_KEY".to_owned(), format!("k1:{signing_key}")),
        ("SERVER_SECRET".to_owned(), server_secret),
        ("CHANNEL_ENCRYPTION_KEY".to_owned(), encryption_key),
        ("WEBHOOK_SECRETS".to_owned(), format!("crm={}", w.webhook_secret)),
    ];
    for name in ["ENGINE_API_KEY", "METRICS_TOKEN"] {
        vars.push((name.to_owned(), w.secrets.new_value(name, Class::Secret)));
    }
    vars
}

/// The application's own 500s, and both stores away, with and without a word: errors are where secrets leak.
async fn everything_breaks(w: &mut World, people: &People, stores: &Stores, pool: &PgPool) {
    let log_in = json!({ "email": people.email, "password": people.password });
    let refresh = json!({ "refresh_token": people.user.refresh });
    let nobody = Who::default();
    let statuses = async |w: &mut World| {
        let mut seen = Vec::new();
        for (who, operation, body) in [
            (&nobody, "POST /v1/auth/login", log_in.clone()),
            (&nobody, "POST /v1/auth/refresh", refresh.clone()),
            (&people.user.who, "GET /v1/me", Value::Null),
            (&people.key, "GET /v1/me", Value::Null),
            (&people.user.who, "POST /v1/api-keys", json!({ "name": "x" })),
            (&people.admin.who, "GET /v1/admin/queues", Value::Null),
        ] {
            seen.push(w.ask(who, operation, &[], body).await.status);
        }
        seen
    };
    sqlx::query("alter table users rename to gone").execute(pool).await.unwrap();
    assert!(statuses(w).await.iter().all(|status| *status == 500), "for Sentry");
    sqlx::query("alter table gone rename to users").execute(pool).await.unwrap();

    for fault in [Mode::Refuse, Mode::Blackhole] {
        stores.postgres.set(fault);
        let seen = statuses(w).await;
        assert!(seen.iter().all(|status| *status == 503), "{fault:?}: {seen:?}");
        stores.postgres.set(Mode::Pass);
        eventually("Postgres is back", S(20), async || {
            w.ask(&people.key, "GET /v1/me", &[], Value::Null).await.status == 200
        })
        .await;

        stores.redis.set(fault);
        for _ in 0..4 {
            w.ok(&people.user.who, "GET /v1/me", &[], Value::Null).await;
            let found = w.ok(&nobody, "POST /v1/auth/login", &[], log_in.clone()).await;
            w.learn_tokens(&found);
        }
        stores.redis.set(Mode::Pass);
    }
}

/// Each line is one JSON object with what every line has; no request calls itself what a client wanted it to be called.
fn assert_log_lines(process: &str, output: &str, hostile_ids: &[Vec<u8>]) {
    assert!(output.lines().count() > 5, "{process} says something");
    for line in output.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{process}: {e}: {line}"));
        for field in ["timestamp", "level", "message", "service", "env"] {
            assert!(line[field].is_string(), "{process}: {line}");
        }
        let id = line["request_id"].as_str().unwrap_or_default();
        assert!(!hostile_ids.iter().any(|hostile| hostile == id.as_bytes()), "{process}: {line}");
        assert_ne!(line["message"], "forged", "{process}: {line}");
    }
    let control = output.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(control, None, "{process} writes a control character");
}

/// Cases H10 and H11.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_through_logs_errors_traces_dumps_or_answers_whatever_is_asked_and_whatever_fails() {
    let (stores, collector) = (Stores::start().await, Collector::start().await);
    let engine = engine_sim::Sim::start(engine_sim::SimConfig::instant()).await;
    let ports = [free_port(), free_port(), free_port()];
    let pool = PgPool::connect(&stores.services.database_url).await.unwrap();
    let mut world = World::new(format!("http://127.0.0.1:{}", ports[0]), pool.clone());
    let w = &mut world;

    let mut vars = deployment_secrets(w, &stores);
    let metrics_token = vars.last().unwrap().1.clone();
    let sentry_key = w.secrets.new_value("SENTRY_DSN", Class::Secret);
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vars.extend([
        set("APP_ENV", "production"),
        set("HOST", "127.0.0.1"),
        set("PUBLIC_URL", "https://api.example.com"),
        set("TRUSTED_PROXY", "none"),
        set("SIGNUP", "open"),
        set("LOG_LEVEL", "debug"),
        set("SENTRY_DSN", &format!("http://{sentry_key}@{}/1", collector.address)),
        set("SENTRY_TRACES_SAMPLE_RATE", "1.0"),
        set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", collector.address)),
        set("DATABASE_ACQUIRE_TIMEOUT", "2s"),
        set("DATABASE_STATEMENT_TIMEOUT", "2s"),
        set("DATABASE_CALL_DEADLINE", "2s"),
        set("SHUTDOWN_DELAY", "0s"),
        set("SHUTDOWN_BUDGET", "10s"),
    ]);
    // Limits are not the subject, whichever there are.
    let limits = config::VARIABLES.iter().filter(|v| v.name.starts_with("RATE_LIMIT_"));
    vars.extend(limits.map(|v| set(v.name, "100000000/1d")));
    let telltale = telltale_engine().await;
    let engine_url = format!("{}/v1", engine.url());
    vars.push(set("CREDENTIAL_PROVIDERS", &format!("sim={engine_url},telltale={telltale}")));
    // A role, or a command with its arguments.
    let start = |command: &str, port: u16, engine_url: &str| {
        let port = port.to_string();
        let arguments: Vec<&str> = command.split(' ').collect();
        let mut all: Vec<(&str, &str)> =
            vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        all.extend([("PORT", port.as_str()), ("ENGINE_URL", engine_url)]);
        Process::start(&arguments, &all)
    };

    let mut migrate = start("migrate", 0, "http://127.0.0.1:1/v1");
    assert!(migrate.wait(S(60)).await.0.success(), "{}", migrate.output());
    let mut roles = [
        ("api", start("api", ports[0], &engine_url)),
        ("api with a telltale engine", start("api", ports[1], &telltale)),
        ("worker", start("worker", ports[2], &engine_url)),
    ];
    for port in ports {
        ready(port).await;
    }
    let mut redis = db::redis_client::Client::open(stores.services.redis_url.as_str())
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();

    let people = scenario::every_route_works(w, &metrics_token).await;
    let document = w.ok(&Who::default(), "GET /openapi.json", &[], Value::Null).await.json();
    let operations = abuse::operations(&document);
    let worked: BTreeSet<String> = w.statuses.keys().cloned().collect();
    let missing: Vec<&str> = operations
        .iter()
        .map(|operation| operation.name.as_str())
        .filter(|name| !worked.contains(*name) && WITHOUT_SUCCESS.iter().all(|(without, _)| without != name))
        .collect();
    assert!(missing.is_empty(), "add these routes to canaries/scenario.rs: {missing:#?}");
    abuse::every_route_is_abused(w, &operations).await;
    let mut in_redis = stores::redis(&mut redis).await;

    let usual = std::mem::replace(&mut w.url, format!("http://127.0.0.1:{}", ports[1]));
    for operation in ["POST /v1/chat/completions", "POST /v1/embeddings"] {
        let body = json!({ "model": "m", "input": "x", "messages": [{ "role": "user", "content": "x" }] });
        let answer = w.ask(&people.user.who, operation, &[], body).await;
        assert!([400, 502].contains(&answer.status), "{operation}: {}", answer.text);
    }
    w.url = usual;
    everything_breaks(w, &people, &stores, &pool).await;

    in_redis.push_str(&stores::redis(&mut redis).await);
    let mut doctors = vec![start("doctor", 0, &engine_url)];
    doctors[0].wait(S(30)).await;
    for store in [&stores.postgres, &stores.redis] {
        store.set(Mode::Refuse);
    }
    doctors.push(start("doctor", 0, "http://127.0.0.1:1/v1"));
    assert!(!doctors[1].wait(S(30)).await.0.success(), "{}", doctors[1].output());
    for store in [&stores.postgres, &stores.redis] {
        store.set(Mode::Pass);
    }
    let mut commands = Vec::new();
    for command in COMMANDS {
        let mut process = start(command, 0, &engine_url);
        let (status, _) = process.wait(S(30)).await;
        assert!(status.success(), "{command}: {}", process.output());
        commands.push((command, process.output()));
    }
    // What a command made and shows once is shown by no other one.
    let passwords = commands.iter().filter_map(|(_, said)| said.split_once("password: "));
    for (_, password) in passwords {
        w.secrets.learn("a password that was shown once", password.trim(), Class::Secret);
    }
    let in_postgres = stores::postgres(&pool).await;
    let mut outputs = vec![("migrate", migrate.output())];
    outputs.extend(commands.iter().map(|(command, said)| {
        let kept = said.lines().filter(|line| !line.starts_with("password: "));
        (*command, kept.collect::<Vec<_>>().join("\n"))
    }));
    outputs.extend(doctors.iter().map(|doctor| ("doctor", doctor.output())));
    for (name, process) in &mut roles {
        process.signal(Signal::SIGTERM);
        let (status, _) = process.wait(S(20)).await;
        assert!(status.success(), "{name}: {}", process.output());
        outputs.push((name, process.output()));
    }

    // What is searched is what it is taken for.
    let refresh = URL_SAFE_NO_PAD.decode(&people.user.refresh[3..]).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &refresh);
    assert!(in_postgres.contains(&api::auth::hex(hash.as_ref())), "the hash of a live refresh token");
    assert!(in_postgres.contains("$argon2id$"));
    assert!(
        in_redis.contains(":rl:") && in_redis.contains(":key:") && in_redis.contains(":rev:"),
        "{in_redis}"
    );
    let sentry = collector.text("/envelope");
    assert!(sentry.contains("request failed"), "errors were reported");
    let traces = collector.text("/v1/traces");
    assert!(traces.contains("/v1/auth/login"), "traces were sent");
    assert!(w.secrets.count() > 1_000, "{}", w.secrets.count());
    let control = w.secrets.found_in(Place::Logs, "control", &in_postgres);
    assert!(
        control.iter().any(|hit| hit.contains("the name of a key")),
        "what is there is found: {control:?}"
    );

    // Its own key is a part of Sentry's protocol.
    let sentry = sentry
        .replace(&format!("{sentry_key}@"), "")
        .replace(&format!("\"public_key\":\"{sentry_key}\""), "");
    let mut found = w.secrets.found_in(Place::Sentry, "envelopes", &sentry);
    found.extend(w.secrets.found_in(Place::Traces, "spans", &traces));
    found.extend(w.secrets.found_in(Place::Postgres, "rows", &in_postgres));
    found.extend(w.secrets.found_in(Place::Redis, "keys and values", &in_redis));
    for (name, output) in &outputs {
        found.extend(w.secrets.found_in(Place::Logs, name, output));
    }
    for text in [&sentry, &traces, &in_postgres, &in_redis].into_iter().chain(outputs.iter().map(|(_, o)| o))
    {
        found.extend(Secrets::tokens_in(text));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    for (name, output) in outputs.iter().filter(|(name, _)| roles.iter().any(|(role, _)| role == name)) {
        assert_log_lines(name, output, &w.hostile_ids);
    }
}
