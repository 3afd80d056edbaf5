//! No room left (case D7): Postgres's disk, Redis's memory, and nobody who reads standard output.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use test_support::OwnServices;

use crate::support::{Deployment, PASSWORD, Process, free_port, metric, ready};

async fn post(port: u16, path: &str, body: &serde_json::Value) -> reqwest::Response {
    let url = format!("http://127.0.0.1:{port}{path}");
    reqwest::Client::new().post(url).json(body).send().await.unwrap()
}

/// As Postgres says it (53100), for every row that would take room. Reading goes on.
#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_disk_full_writes_are_503_reads_go_on_and_it_heals() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let mut api = deployment.start("api", port, &[]);
    ready(port).await;
    let account = |name: &str| json!({ "email": format!("{name}@example.com"), "password": PASSWORD });
    assert_eq!(post(port, "/v1/auth/register", &account("before")).await.status(), 201);
    let login = post(port, "/v1/auth/login", &account("before")).await;
    let token = login.json::<serde_json::Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
    let full = "
        create function full_disk() returns trigger language plpgsql as
            $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
        create trigger full_disk before insert or update on users for each row execute function full_disk();
        create trigger full_disk before insert or update on session for each row execute function full_disk();
        create trigger full_disk before insert or update on refresh_token for each row execute function full_disk();";
    sqlx::raw_sql(full).execute(deployment.database.pool()).await.unwrap();
    for (path, name) in [("/v1/auth/register", "during"), ("/v1/auth/login", "before")] {
        let answer = post(port, path, &account(name)).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert!(answer.headers().contains_key("retry-after"), "{path}");
        let body = answer.text().await.unwrap();
        assert!(!body.contains("No space"), "{path}: the server's words are for the log: {body}");
    }
    let me = reqwest::Client::new().get(format!("http://127.0.0.1:{port}/v1/me")).bearer_auth(&token);
    assert_eq!(me.send().await.unwrap().status(), 200, "reading needs no room");
    assert_eq!(reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.unwrap().status(), 200);
    sqlx::raw_sql("drop function full_disk cascade").execute(deployment.database.pool()).await.unwrap();
    assert_eq!(post(port, "/v1/auth/register", &account("during")).await.status(), 201);
    assert_eq!(post(port, "/v1/auth/login", &account("before")).await.status(), 200);
    assert!(api.is_running());
}

/// From now on Redis refuses every write.
fn no_more_memory(url: &str) {
    let (user, address) = url.strip_prefix("redis://").unwrap().rsplit_once('@').unwrap();
    let password = user.rsplit_once(':').map_or(user, |(_, password)| password);
    let mut stream = TcpStream::connect(address.split('/').next().unwrap()).unwrap();
    let said = format!(
        "AUTH {password}\r\nCONFIG SET maxmemory-policy noeviction\r\nCONFIG SET maxmemory 1\r\nQUIT\r\n"
    );
    stream.write_all(said.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("+OK").count(), 4, "{answers}");
}

/// A Redis that may not write (a full memory, or a snapshot that failed: MISCONF) limits nobody exactly, and stops nobody.
#[tokio::test(flavor = "multi_thread")]
async fn with_redis_full_requests_go_on_under_local_limits() {
    let (services, deployment) = tokio::join!(OwnServices::start(), Deployment::new());
    let port = free_port();
    let vars =
        [("REDIS_URL", services.redis_url.as_str()), ("RATE_LIMIT_LOGIN", "10/15m"), ("API_REPLICAS", "2")];
    let mut api = deployment.start("api", port, &vars);
    ready(port).await;
    no_more_memory(&services.redis_url);
    let wrong = json!({ "email": "nobody@example.com", "password": "not the password" });
    let mut seen = Vec::new();
    for _ in 0..12 {
        seen.push(post(port, "/v1/auth/login", &wrong).await.status().as_u16());
    }
    assert!(seen.iter().all(|status| [401, 429].contains(status)), "{seen:?}");
    assert!(seen.contains(&429), "no limit held: {seen:?}");
    assert!(metric(port, "redis_failures_total", "").await > 0.0, "Redis took it all the same");
    assert_eq!(reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.unwrap().status(), 200);
    assert!(api.is_running());
}

/// Whoever reads the log has gone: every line that is written fails with EPIPE.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_standard_output_ends_nothing() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let (port_text, engine) = (port.to_string(), format!("{}/v1", deployment.engine.url()));
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", deployment.database.url()),
        ("REDIS_URL", &deployment.redis.url),
        ("REDIS_KEY_PREFIX", &deployment.redis.prefix),
        ("ENGINE_URL", &engine),
        ("LOG_FORMAT", "json"),
    ];
    let mut command = Process::command(&["all"], &vars);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    ready(port).await;
    let account = json!({ "email": "quiet@example.com", "password": PASSWORD });
    for wanted in [201, 409] {
        // Both are logged.
        assert_eq!(post(port, "/v1/auth/register", &account).await.status(), wanted);
    }
    assert!(child.try_wait().unwrap().is_none(), "it ended");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait());
    let status =
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends").unwrap().unwrap();
    assert!(status.success(), "{status}");
}
