//! The real binary while its dependencies stop and come back.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use test_support::OwnServices;

use crate::support::{Process, eventually, free_port};

const S: fn(u64) -> Duration = Duration::from_secs;

async fn health(port: u16) -> (u16, Value) {
    let response = reqwest::get(format!("http://127.0.0.1:{port}/health")).await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn status(port: u16, path: &str) -> u16 {
    reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.map_or(0, |r| r.status().as_u16())
}

async fn until(port: u16, path: &str, wanted: u16, patience: Duration) {
    eventually(&format!("{path} answers {wanted}"), patience, async || status(port, path).await == wanted)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_tells_the_truth_while_postgres_redis_and_engine_stop_and_come_back() {
    let services = OwnServices::start().await;
    let port = free_port();
    let engine = engine_sim::Sim::start(engine_sim::SimConfig::instant()).await;
    let (port_text, engine_url) = (port.to_string(), format!("{}/v1", engine.url()));
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", services.database_url.as_str()),
        ("REDIS_URL", services.redis_url.as_str()),
        ("ENGINE_URL", engine_url.as_str()),
    ];
    let mut api = Process::start(&["api"], &vars);
    until(port, "/livez", 200, S(10)).await;
    assert_eq!(status(port, "/readyz").await, 503, "the schema is missing");
    let (_, report) = health(port).await;
    assert!(report["checks"]["postgres"]["error"].as_str().unwrap().contains("migrate"), "{report}");
    assert!(Process::command(&["migrate", "up", "--seed"], &vars).status().unwrap().success());
    until(port, "/readyz", 200, S(8)).await;
    assert_eq!(status(port, "/startupz").await, 200);
    assert_eq!(health(port).await.1["status"], "ok");

    // The engine: degraded, still ready.
    drop(engine);
    eventually("the report names the engine", S(8), async || {
        let (code, report) = health(port).await;
        code == 200 && report["status"] == "degraded" && report["checks"]["engine"]["status"] == "degraded"
    })
    .await;
    assert_eq!(status(port, "/readyz").await, 200);

    // Redis paused: degraded, and nobody waits for it.
    let redis = services.redis();
    redis.signal(Signal::SIGSTOP);
    let login = json!({ "email": "demo@example.com", "password": "ballast-demo-password" });
    let client = reqwest::Client::builder().build().unwrap();
    for _ in 0..8 {
        let started = Instant::now();
        let answer =
            client.post(format!("http://127.0.0.1:{port}/v1/auth/login")).json(&login).send().await.unwrap();
        assert_eq!(answer.status(), 200, "logging in works on the local limits");
        assert!(started.elapsed() < S(2), "{:?}", started.elapsed());
    }
    eventually("the report names redis", S(8), async || {
        let (code, report) = health(port).await;
        code == 200 && report["checks"]["redis"]["status"] == "degraded"
    })
    .await;
    redis.signal(Signal::SIGCONT);
    eventually("redis is back", S(12), async || health(port).await.1["checks"]["redis"]["status"] == "ok")
        .await;

    // Postgres killed: not ready, alive, clear 503s, and well again without a restart of ours.
    services.postgres().signal(Signal::SIGKILL);
    until(port, "/readyz", 503, S(8)).await;
    assert_eq!(status(port, "/livez").await, 200);
    let started = Instant::now();
    let answer =
        client.post(format!("http://127.0.0.1:{port}/v1/auth/login")).json(&login).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(
        answer.headers().contains_key("retry-after") && started.elapsed() < S(4),
        "{:?}",
        started.elapsed()
    );
    assert!(answer.text().await.unwrap().contains("database_unavailable"));
    let _services = services.restart().await;
    until(port, "/readyz", 200, S(15)).await;
    let answer =
        client.post(format!("http://127.0.0.1:{port}/v1/auth/login")).json(&login).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(api.is_running(), "{}", api.output());
}

/// Case D5: the order in which things start does not matter, and a name that nobody knows is no reason to end.
#[tokio::test(flavor = "multi_thread")]
async fn roles_that_start_before_their_stores_say_so_and_are_ready_once_those_are_there() {
    let services = OwnServices::start().await;
    let (api_port, worker_port, lost_port) = (free_port(), free_port(), free_port());
    let start = |role: &str, port: u16, database: &str, redis: &str| {
        let port = port.to_string();
        let vars = [
            ("PORT", port.as_str()),
            ("HOST", "127.0.0.1"),
            ("DATABASE_URL", database),
            ("REDIS_URL", redis),
            ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ];
        Process::start(&[role], &vars)
    };
    let (database, redis) = (services.database_url.clone(), services.redis_url.clone());
    let migrated = Process::command(&["migrate", "up"], &[("DATABASE_URL", &database)]).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    // Their ports are theirs, and nobody is there.
    services.postgres().signal(Signal::SIGKILL);
    services.redis().signal(Signal::SIGKILL);
    for url in [&database, &redis] {
        let address = url.rsplit_once('@').unwrap().1.split('/').next().unwrap().to_owned();
        eventually(&format!("nobody listens at {address}"), S(10), async || {
            tokio::net::TcpStream::connect(&address).await.is_err()
        })
        .await;
    }
    let mut roles = [
        ("api", api_port, start("api", api_port, &database, &redis)),
        ("worker", worker_port, start("worker", worker_port, &database, &redis)),
    ];
    let lost = "postgres://ballast:word@no-such-host.invalid/ballast";
    let mut without_a_name = start("api", lost_port, lost, "redis://no-such-host.invalid");
    let named = async |port: u16| {
        until(port, "/livez", 200, S(10)).await;
        until(port, "/readyz", 503, S(10)).await;
        eventually("the report names Postgres", S(10), async || {
            health(port).await.1["checks"]["postgres"]["error"].is_string()
        })
        .await;
    };
    for (_, port, _) in &roles {
        named(*port).await;
    }
    named(lost_port).await;
    // Long enough for a crash loop.
    tokio::time::sleep(S(2)).await;
    for (role, _, process) in &mut roles {
        assert!(process.is_running(), "{role}: {}", process.output());
    }

    let services = services.restart().await;
    assert_eq!(
        (&services.database_url, &services.redis_url),
        (&database, &redis),
        "they are where they were"
    );
    for (role, port, process) in &mut roles {
        until(*port, "/readyz", 200, S(30)).await;
        assert!(process.is_running(), "{role}: without a restart");
    }
    assert!(without_a_name.is_running(), "{}", without_a_name.output());
    assert_eq!((status(lost_port, "/livez").await, status(lost_port, "/readyz").await), (200, 503));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_does_not_end_the_process() {
    let services = OwnServices::start().await;
    let port = free_port();
    let (user, rest) = services.database_url.split_once("://").unwrap().1.split_once(':').unwrap();
    let wrong = format!("postgres://{user}:wrong{}", &rest[rest.find('@').unwrap()..]);
    let port_text = port.to_string();
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", wrong.as_str()),
        ("REDIS_URL", services.redis_url.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
    ];
    let mut worker = Process::start(&["worker"], &vars);
    until(port, "/livez", 200, S(10)).await;
    tokio::time::sleep(S(2)).await;
    assert_eq!(status(port, "/readyz").await, 503);
    let (_, report) = health(port).await;
    assert!(report["checks"]["postgres"]["error"].as_str().unwrap().contains("password"), "{report}");
    assert!(worker.is_running());
    assert!(worker.output().contains("DATABASE_URL"), "{}", worker.output());
    let migrate = Process::command(&["migrate"], &vars).output().unwrap();
    assert_eq!(migrate.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&migrate.stderr).contains("password"));
}
