//! The edge's own limits: rates per zone, and connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{MS, NAME, Nginx, S, exchange_from};
use crate::support::{Answer, TestApp, exchange};

/// Many requests at once on one path, from one address.
async fn flood(nginx: &Nginx, ip: &str, method: &str, path: &str, count: usize) -> Vec<Answer> {
    let client = nginx.client_at(ip);
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    // A few at a time: the limit on connections is another test's.
    let mut answers = Vec::new();
    while answers.len() < count {
        let batch = (0..20).map(|_| {
            let request = client.request(method.clone(), format!("{}{path}", nginx.url()));
            async move { Answer::read(request.json(&json!({})).send().await.unwrap()).await }
        });
        answers.extend(join_all(batch).await);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_limits_each_zone_per_address_and_says_429_in_the_apis_words() {
    let app = TestApp::start().await;
    let nginx = Nginx::start(&[app.url.rsplit_once(':').unwrap().1.parse().unwrap()]).await;
    // What passes is refused by the API, for other reasons, or answered by it.
    for (ip, method, path, count, passed, least) in [
        ("127.0.0.11", "POST", "/v1/auth/login", 60, 422, 20),
        ("127.0.0.12", "GET", "/readyz", 100, 200, 20),
        ("127.0.0.13", "GET", "/v1/me", 300, 401, 100),
    ] {
        let answers = flood(&nginx, ip, method, path, count).await;
        let through = answers.iter().filter(|a| a.status == passed).count();
        assert!(through >= least && through < count, "{path}: {through} of {count} passed");
        for answer in answers.into_iter().filter(|a| a.status != passed) {
            let answer = answer.problem(429, "too_fast");
            assert_eq!(answer.header("retry-after"), "1", "{path}");
            assert!(!answer.header("strict-transport-security").is_empty(), "{path}");
        }
    }
    let answers = flood(&nginx, "127.0.0.14", "POST", "/v1/chat/completions", 300).await;
    let refused = answers.iter().find(|a| a.status == 429).expect("the AI routes are in the zone of the API");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error", "{}", refused.text);
    // An exhausted zone is that address's alone, and other zones are not touched.
    let fresh = nginx.client_at("127.0.0.15").get(format!("{}/v1/me", nginx.url())).send().await.unwrap();
    assert_eq!(fresh.status(), 401);
    let probe = nginx.client_at("127.0.0.13").get(format!("{}/livez", nginx.url())).send().await.unwrap();
    assert_eq!(probe.status(), 200);
}

/// Takes requests and answers none.
async fn hole() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap().port();
    let hole = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    (upstream, hole)
}

/// 60 s for ordinary routes and 180 s where an engine may be silent: here a thirtieth of it.
#[tokio::test(flavor = "multi_thread")]
async fn nginx_waits_longer_for_an_answer_on_the_ai_routes_and_for_events() {
    let (upstream, hole) = hole().await;
    let nginx = Nginx::edited(&[upstream], "", |conf| {
        assert_eq!(conf.matches("proxy_read_timeout 60s;").count(), 1);
        assert_eq!(conf.matches("proxy_read_timeout 180s;").count(), 2);
        conf.replace("proxy_read_timeout 60s;", "proxy_read_timeout 2s;")
            .replace("proxy_read_timeout 180s;", "proxy_read_timeout 6s;")
    })
    .await;
    let client = nginx.client_at("127.0.0.1");
    let ask = async |method: reqwest::Method, path: &str| {
        let started = Instant::now();
        let request = client.request(method, format!("{}{path}", nginx.url())).json(&json!({}));
        (request.send().await.unwrap().status().as_u16(), started.elapsed())
    };
    let (ordinary, chat, events) = tokio::join!(
        ask(reqwest::Method::GET, "/v1/jobs/1"),
        ask(reqwest::Method::POST, "/v1/chat/completions"),
        ask(reqwest::Method::GET, "/v1/runs/1/events"),
    );
    assert!(ordinary.0 == 504 && ordinary.1 >= S(2) && ordinary.1 < S(5), "{ordinary:?}");
    for long in [chat, events] {
        assert!(long.0 == 504 && long.1 >= S(6), "{long:?}");
    }
    hole.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_its_connections_to_the_replicas() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = accepted.clone();
    let replica = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    let nginx = Nginx::start(&[upstream]).await;
    // The sample has as many workers as there are processors, each with connections of its own; one client connection stays
    // with one of them.
    let client = nginx.client_at("127.0.0.1");
    for _ in 0..20 {
        let answer = client.get(format!("{}/v1/jobs/1", nginx.url())).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "ok");
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 1);
    replica.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_limits_the_requests_that_one_address_has_open() {
    let (upstream, hole) = hole().await;
    let nginx = Nginx::start(&[upstream]).await;
    let head = format!("GET /v1/jobs/1/events HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut stream = tokio::net::TcpStream::connect(nginx.plain).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        open.push(stream);
    }
    // nginx counts a request when it has read its head.
    let mut refused = exchange(nginx.plain, head.as_bytes(), MS(500)).await;
    for _ in 0..80 {
        if refused.status() == 429 {
            break;
        }
        refused = exchange(nginx.plain, head.as_bytes(), MS(500)).await;
    }
    refused.problem(429);
    let neighbour = exchange_from("127.0.0.2", nginx.plain, head.as_bytes(), MS(300)).await;
    assert_eq!(neighbour.statuses(), [0_u16; 0], "another address is passed on: {neighbour:?}");
    drop(open);
    hole.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_takes_one_ipv6_network_for_one_client() {
    let app = TestApp::start().await;
    // nginx behind another balancer, as the comment in `site/http.conf` has it.
    let behind = "set_real_ip_from 127.0.0.1;\nreal_ip_header X-Forwarded-For;\n";
    let port = app.url.rsplit_once(':').unwrap().1.parse().unwrap();
    let nginx = Nginx::with(&[port], behind).await;
    let client = nginx.client_at("127.0.0.1");
    let ask = async |ip: String| {
        let request = client.get(format!("{}/readyz", nginx.url())).header("x-forwarded-for", ip);
        request.send().await.unwrap().status().as_u16()
    };
    // 0a is a line feed, which a pattern must not stumble over.
    let same = join_all((0..100).map(|i| ask(format!("2001:db8:0:a0a::{i:x}")))).await;
    assert!(same.contains(&200) && same.contains(&429), "one bucket: {same:?}");
    let different = join_all((0..100).map(|i| ask(format!("2001:db8:1:{i:x}::1")))).await;
    assert!(different.iter().all(|status| *status == 200), "a bucket each: {different:?}");
    let v4 = join_all((0..100).map(|i| ask(format!("198.51.100.{i}")))).await;
    assert!(v4.iter().all(|status| *status == 200), "{v4:?}");
    tokio::time::timeout(Duration::from_secs(5), async {
        while ask("2001:db8:0:a0a::1".to_owned()).await != 200 {
            tokio::time::sleep(MS(100)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("the bucket is open again within {:?}", S(5)));
}
