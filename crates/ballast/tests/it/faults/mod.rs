//! The real binary while its stores fail, over servers of its own that are killed, paused and filled up.

mod clocks;
mod disk;
mod load;
mod output;
mod postgres;
mod redis;
mod redis_server;

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use test_support::OwnServices;

use crate::support::{Process, eventually, free_port, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

/// Needs Redis and no database.
const ADMITTED: &str = "/v1/whoami";
/// Needs both.
const STORED: &str = "/v1/me";

/// What every API of a stand has.
fn variables<'a>(services: &'a OwnServices, port: &'a str, engine_url: &'a str) -> [(&'a str, &'a str); 10] {
    [
        ("PORT", port),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", &services.database_url),
        ("DATABASE_POOL_SIZE", "5"),
        ("REDIS_URL", &services.redis_url),
        ("ENGINE_URL", engine_url),
        ("LOG_FORMAT", "json"),
        ("SHUTDOWN_BUDGET", "6s"),
        // So that a load can come from several clients.
        ("TRUSTED_PROXY", "127.0.0.1/32"),
        ("RATE_LIMIT_GLOBAL", "1000000/1m"),
    ]
}

/// An API over a pair of servers, with the demo user.
struct Stand {
    /// Taken and put back by who restarts them.
    services: Option<OwnServices>,
    api: Process,
    port: u16,
    url: String,
    client: reqwest::Client,
    token: String,
    engine: engine_sim::Sim,
}

impl Stand {
    async fn start(more: &[(&str, &str)]) -> Self {
        Self::over(OwnServices::start().await, more).await
    }

    /// With `more` on top of what every API has; a URL among it may lead through a proxy.
    async fn over(services: OwnServices, more: &[(&str, &str)]) -> Self {
        let engine = engine_sim::Sim::start(engine_sim::SimConfig::instant()).await;
        let port = free_port();
        let (port_text, engine_url) = (port.to_string(), format!("{}/v1", engine.url()));
        let mut vars = variables(&services, &port_text, &engine_url).to_vec();
        let migrated = Process::command(&["migrate", "up", "--seed"], &vars).output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        vars.extend(more);
        let api = Process::start(&["api"], &vars);
        ready(port).await;
        let url = format!("http://127.0.0.1:{port}");
        let client = reqwest::Client::builder().timeout(S(60)).build().unwrap();
        let mut stand =
            Self { services: Some(services), api, port, url, client, token: String::new(), engine };
        let (status, body) = stand.log_in().await;
        assert_eq!(status, 200, "{body}");
        body["access_token"].as_str().unwrap().clone_into(&mut stand.token);
        stand
    }

    /// One more API over the same servers, and its port.
    async fn replica(&self, more: &[(&str, &str)]) -> (Process, u16) {
        let port = free_port();
        let (port_text, engine_url) = (port.to_string(), format!("{}/v1", self.engine.url()));
        let vars = [&variables(self.services(), &port_text, &engine_url), more].concat();
        let process = Process::start(&["api"], &vars);
        ready(port).await;
        (process, port)
    }

    fn services(&self) -> &OwnServices {
        self.services.as_ref().expect("the servers are there")
    }

    /// Starts what was killed, with the data it had.
    async fn restart_services(&mut self) {
        let services = self.services.take().expect("the servers are there").restart().await;
        self.services = Some(services);
    }

    fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    async fn status(&self, path: &str) -> u16 {
        self.get(path).send().await.map_or(0, |answer| answer.status().as_u16())
    }

    async fn log_in(&self) -> (u16, Value) {
        let login = json!({ "email": "demo@example.com", "password": "ballast-demo-password" });
        let answer =
            self.client.post(format!("{}/v1/auth/login", self.url)).json(&login).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// What the report says of this check, and the status of the report.
    async fn check(&self, name: &str) -> (u16, String) {
        let answer = self.get("/health").send().await.unwrap();
        let status = answer.status().as_u16();
        let report: Value = answer.json().await.unwrap();
        (status, report["checks"][name]["status"].as_str().unwrap_or("missing").to_owned())
    }

    async fn until(&self, path: &str, wanted: u16, patience: Duration) {
        eventually(&format!("{path} answers {wanted}"), patience, async || self.status(path).await == wanted)
            .await;
    }

    /// Asserts that the database's absence is told as it should be.
    async fn expect_database_unavailable(&self) {
        let answer = self.get(STORED).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
        let text = answer.text().await.unwrap();
        assert!(text.contains("database_unavailable"), "{text}");
    }

    /// The messages that were logged, oldest first, of those that begin so.
    fn logged(&self, begins: &str) -> Vec<Value> {
        let output = self.api.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"].as_str().is_some_and(|m| m.starts_with(begins))).collect()
    }
}

/// A connection to a Redis, for what tests tell it themselves.
async fn redis_at(url: &str) -> db::redis_client::aio::MultiplexedConnection {
    let client = db::redis_client::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Tells it something, which it must do. A plus stands for a space inside a word, two quotes for an empty one.
async fn tell(redis: &mut db::redis_client::aio::MultiplexedConnection, command: &str) {
    let mut words = command.split(' ');
    let mut told = db::redis_client::cmd(words.next().unwrap_or_default());
    for word in words {
        told.arg(word.trim_matches('"').replace('+', " "));
    }
    told.exec_async(redis).await.unwrap_or_else(|error| panic!("{command}: {error}"));
}

/// The code of an error that Postgres answered.
fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
