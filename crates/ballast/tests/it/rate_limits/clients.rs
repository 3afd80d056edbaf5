//! Who a request is counted for.

use std::net::SocketAddr;

use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use server::Peer;
use test_support::{TestDatabase, test_redis};
use tower::ServiceExt as _;

use super::{knock, let_through};
use crate::support::{PASSWORD, Process, TestApp, eventually, free_port, insert_user};

const LIMIT: usize = 10;

/// The API as seen from a peer of any address, which a socket on loopback cannot have.
struct Network {
    router: Router,
    _app: TestApp,
}

impl Network {
    async fn new(trusted_proxy: &str) -> Self {
        let app = TestApp::with(&[("TRUSTED_PROXY", trusted_proxy), ("RATE_LIMIT_REFRESH", "10/1h")]).await;
        Self { router: api::router(app.state.clone()), _app: app }
    }

    /// Knocks from this peer with these headers.
    async fn knock(&self, peer: &str, headers: &[(String, String)]) -> u16 {
        let peer = SocketAddr::new(peer.parse().unwrap(), 4_711);
        let body = json!({ "refresh_token": "no such token" }).to_string();
        let mut request = Request::post("/v1/auth/refresh").header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(Peer(peer));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    }

    /// Knocks thirty times, with other forged headers each time, and other ones that the proxy adds; asserts that they count
    /// as one client.
    async fn is_one_client(
        &self,
        what: &str,
        peer: &str,
        proxied: impl Fn(Vec<String>) -> Vec<(String, String)>,
    ) {
        let mut passed = 0;
        for i in 0..30_u8 {
            // 1 to 50 entries, never the same.
            let forged: Vec<_> = (0..=u8::try_from(usize::from(i) * 49 / 29).unwrap())
                .map(|n| if n % 7 == 6 { "garbage".to_owned() } else { format!("198.51.{n}.{i}") })
                .collect();
            let mut headers = vec![
                ("forwarded".to_owned(), format!("for=198.51.100.{i}")),
                ("cf-connecting-ip".to_owned(), format!("198.51.100.{i}")),
                ("true-client-ip".to_owned(), format!("198.51.100.{i}")),
                ("x-client-ip".to_owned(), format!("198.51.100.{i}")),
            ];
            headers.extend(proxied(forged));
            match self.knock(peer, &headers).await {
                401 => passed += 1,
                status => assert_eq!(status, 429, "{what}"),
            }
        }
        assert_eq!(passed, LIMIT, "{what}");
    }
}

fn line(name: &str, value: impl Into<String>) -> (String, String) {
    (name.to_owned(), value.into())
}

/// What a client sends itself: everything at once, in one line and in many.
fn forged_lines(forged: &[String]) -> Vec<(String, String)> {
    let mut lines = vec![line("x-forwarded-for", forged.join(", "))];
    lines.extend(forged.iter().map(|ip| line("x-forwarded-for", ip)));
    lines.extend(forged.iter().take(3).map(|ip| line("x-real-ip", ip)));
    lines
}

/// Case R2, TRUSTED_PROXY=none.
#[tokio::test]
async fn without_a_trusted_proxy_the_peer_is_the_client_whatever_it_says() {
    let network = Network::new("none").await;
    network.is_one_client("a forger", "203.0.113.9", |forged| forged_lines(&forged)).await;
    // Even one who can name addresses of trusted networks elsewhere.
    network.is_one_client("another", "100.64.0.9", |forged| forged_lines(&forged)).await;
}

/// Case R2, TRUSTED_PROXY=railway.
#[tokio::test]
async fn behind_railways_edge_its_one_real_ip_is_the_client() {
    let network = Network::new("railway").await;
    // The edge replaces X-Real-IP and appends to X-Forwarded-For.
    let edge = |client: &'static str| {
        move |forged: Vec<String>| {
            vec![
                line("x-forwarded-for", format!("{}, {client}", forged.join(", "))),
                line("x-real-ip", client),
            ]
        }
    };
    network.is_one_client("a forger", "100.64.0.3", edge("203.0.113.9")).await;
    assert_eq!(
        network.knock("100.64.0.4", &edge("203.0.113.9")(vec![])).await,
        429,
        "another machine of the edge"
    );
    network.is_one_client("another client", "100.64.0.3", edge("203.0.113.10")).await;
    network.is_one_client("not the edge", "203.0.113.77", |forged| forged_lines(&forged)).await;
    // Two of them, which the edge never sends: nobody can tell which one is true, so its own address counts.
    let twice = |forged: Vec<String>| {
        forged
            .iter()
            .take(2)
            .map(|ip| line("x-real-ip", ip))
            .chain([line("x-real-ip", "1.1.1.1"), line("x-real-ip", "2.2.2.2")])
            .collect()
    };
    network.is_one_client("duplicates", "100.64.0.5", twice).await;
}

/// Case R2, TRUSTED_PROXY=10.0.0.0/8,192.168.1.7.
#[tokio::test]
async fn behind_trusted_networks_the_first_address_that_is_not_theirs_is_the_client() {
    let network = Network::new("10.0.0.0/8,192.168.1.7").await;
    let two_proxies = |forged: Vec<String>| {
        vec![
            line("x-real-ip", forged[0].as_str()),
            line("x-forwarded-for", forged.join(", ")),
            line("x-forwarded-for", "203.0.113.9, 192.168.1.7"),
        ]
    };
    network.is_one_client("a forger", "10.1.2.3", two_proxies).await;
    assert_eq!(network.knock("10.9.9.9", &[line("x-forwarded-for", "203.0.113.9")]).await, 429);
    // A client that claims to be a chain of our own proxies.
    let inside = |forged: Vec<String>| {
        let mut lines = forged_lines(&forged);
        lines.push(line("x-forwarded-for", "10.0.0.1, 10.0.0.2, 203.0.113.10"));
        lines
    };
    network.is_one_client("a pretended chain", "10.1.2.3", inside).await;
    network.is_one_client("not a proxy of ours", "203.0.113.77", |forged| forged_lines(&forged)).await;
}

/// Case R3.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_addresses_of_one_subscriber_are_one_client() {
    let app = TestApp::with(&[("TRUSTED_PROXY", "127.0.0.0/8"), ("RATE_LIMIT_REFRESH", "10/1h")]).await;
    let client = app.anonymous();
    let mut answers = Vec::new();
    for i in 0..1_000_u32 {
        let address = format!("2001:db8:7:8:{:x}:{:x}:0:{i:x}", i.wrapping_mul(40_503) & 0xffff, i & 0xff);
        answers.push(knock(&client.behind(address)).await);
    }
    assert_eq!(let_through(answers), LIMIT);
    for neighbour in ["2001:db8:7:9::1", "2001:db8:7:7:ffff:ffff:ffff:ffff"] {
        knock(&client.behind(neighbour)).await.expect(401);
    }
}

/// Case R3: the same address in other words, and what is none.
#[tokio::test(flavor = "multi_thread")]
async fn mapped_addresses_are_ipv4_and_garbage_counts_for_the_peer() {
    let app = TestApp::with(&[("TRUSTED_PROXY", "127.0.0.0/8"), ("RATE_LIMIT_REFRESH", "10/1h")]).await;
    let client = app.anonymous();
    let names = [
        "203.0.113.5",
        "::ffff:203.0.113.5",
        "[::ffff:203.0.113.5]:443",
        "203.0.113.5:80",
        "::ffff:cb00:7105",
    ];
    let mut answers = Vec::new();
    for i in 0..30 {
        answers.push(knock(&client.behind(names[i % names.len()])).await);
    }
    assert_eq!(let_through(answers), LIMIT, "all of them are one client");
    let garbage = [
        "fe80::1%eth0",
        "[fe80::2%3]:80",
        "fe80::3%25en1",
        "nonsense",
        "999.1.1.1",
        "1.2.3.4.5",
        "_hidden",
        "unknown",
    ];
    let mut answers = Vec::new();
    for i in 0..30 {
        answers.push(knock(&client.behind(garbage[i % garbage.len()])).await);
    }
    answers.push(knock(&client).await);
    assert_eq!(let_through(answers), LIMIT, "and so is the peer, whoever sends garbage through it");
}

/// One extractor for limits, logs and the audit log: the real binary behind a proxy that it trusts.
#[tokio::test(flavor = "multi_thread")]
async fn limits_logs_and_audit_agree_on_who_the_client_is() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let port = free_port();
    let port_text = port.to_string();
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("TRUSTED_PROXY", "127.0.0.1"),
        ("LOG_FORMAT", "json"),
    ];
    let api = Process::start(&["api"], &vars);
    let client = reqwest::Client::builder().build().unwrap();
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let ready = async || client.get(url("/readyz")).send().await.is_ok_and(|r| r.status() == 200);
    eventually("the API is ready", std::time::Duration::from_secs(20), ready).await;
    let account = json!({ "email": "ann@example.com", "password": PASSWORD });
    insert_user(database.pool(), "ann@example.com", "user").await;
    let forgotten = json!({ "email": "ann@example.com" });
    for (path, body) in [("/v1/auth/login", account), ("/v1/auth/password/forgot", forgotten)] {
        let request = client.post(url(path)).header("x-forwarded-for", "198.51.100.1, 203.0.113.9");
        let status = request.json(&body).send().await.unwrap().status();
        assert!(status.is_success(), "{path}: {status}");
    }
    let audited: Vec<String> =
        sqlx::query_scalar("select distinct host(ip) from audit_log where ip is not null")
            .fetch_all(database.pool())
            .await
            .unwrap();
    assert_eq!(audited, ["203.0.113.9"]);
    let logged: Vec<Value> = api
        .output()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "request")
        .collect();
    assert_eq!(logged.len(), 2, "{}", api.output());
    assert!(logged.iter().all(|line| line.to_string().contains("203.0.113.9")), "{logged:?}");
    assert!(!api.output().contains("198.51.100.1"), "{}", api.output());
    let mut c = redis.connection().await;
    let pattern = format!("{}v1:rl:*", redis.prefix);
    let keys: Vec<String> = db::redis_client::cmd("KEYS").arg(pattern).query_async(&mut c).await.unwrap();
    assert!(!keys.is_empty() && keys.iter().all(|key| key.contains("203.0.113.9")), "{keys:?}");
}

/// All users in one bucket would be the end of the service, and nobody would see why.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_ip_from_elsewhere_than_railways_edge_is_told_loudly() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let (port, admin_port) = (free_port(), free_port());
    let (port_text, admin_text) = (port.to_string(), admin_port.to_string());
    let engine = engine_sim::Sim::start(engine_sim::SimConfig::instant()).await;
    let engine_url = format!("{}/v1", engine.url());
    let vars = [
        ("PORT", port_text.as_str()),
        ("ADMIN_PORT", admin_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("DATABASE_POOL_SIZE", "3"),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", engine_url.as_str()),
        ("TRUSTED_PROXY", "railway"),
    ];
    let api = Process::start(&["api"], &vars);
    let client = reqwest::Client::builder().build().unwrap();
    let get = async |port: u16, path: &str| {
        let request = client.get(format!("http://127.0.0.1:{port}{path}"));
        let answer = request.header("x-real-ip", "203.0.113.9").send().await.ok()?;
        (answer.status() == 200).then_some(answer.text().await.ok()?)
    };
    let ready = async || get(admin_port, "/readyz").await.is_some();
    eventually("the API is ready", std::time::Duration::from_secs(20), ready).await;
    let doctor = || {
        let output = Process::command(&["doctor", "--role", "api"], &vars).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = tokio::task::block_in_place(doctor);
    assert!(code == Some(0) && text.contains("named by Railway's edge"), "{text}");
    for _ in 0..5 {
        get(port, "/v1/me").await;
    }
    assert_eq!(api.output().matches("TRUSTED_PROXY=railway right?").count(), 1, "{}", api.output());
    let metrics = get(admin_port, "/metrics").await.unwrap();
    let count = metrics.lines().find(|line| line.starts_with("client_ip_untrusted_header_total")).unwrap();
    assert!(count.ends_with(" 5") || count.ends_with(" 6"), "{count}");
    eventually("the report tells it", std::time::Duration::from_secs(5), async || {
        let report: Value = serde_json::from_str(&get(admin_port, "/health").await.unwrap()).unwrap();
        report["status"] == "degraded" && report["checks"]["client_address"]["status"] == "degraded"
    })
    .await;
    assert!(get(admin_port, "/readyz").await.is_some(), "it can still serve");
    let (code, text) = tokio::task::block_in_place(doctor);
    assert!(code == Some(1) && text.contains("FAIL  clients"), "{text}");
}
