//! What every answer has.

use aws_lc_rs::digest::{SHA256, digest};
use axum::{Router, body::Body, middleware, routing::get};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, stream};
use serde_json::Value;

use crate::support::{Deployment, TestApp, free_port, ready};

const HEADERS: [&str; 7] = [
    "strict-transport-security",
    "x-content-type-options",
    "x-frame-options",
    "content-security-policy",
    "referrer-policy",
    "cross-origin-resource-policy",
    "x-request-id",
];

#[tokio::test]
async fn a_plain_request_id_is_kept_and_a_hostile_one_replaced() {
    let app = TestApp::start().await;
    let ask = async |id: &str| {
        let request = app.anonymous().request(reqwest::Method::GET, "/nope").header("x-request-id", id);
        app.anonymous().send(request).await.header("x-request-id").to_owned()
    };
    assert_eq!(ask("trace-0123.ABC_def").await, "trace-0123.ABC_def");
    for hostile in ["short", "with space inside", "\"quote\"\"quote\"", &"x".repeat(65), "a;b;c;d;e;f;g"] {
        assert_ne!(ask(hostile).await, hostile);
    }
}

async fn boom() -> &'static str {
    panic!("the secret is hunter2")
}

async fn boom_later() -> Body {
    let parts = [Ok::<_, std::io::Error>("begun")];
    let later = stream::once(async {
        // What came before is with the client by then.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        panic!("the secret is hunter2")
    });
    Body::from_stream(stream::iter(parts).chain(later))
}

/// Case H9, panics: over a real socket, in a handler and in a body.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_500_that_tells_nothing_and_the_process_goes_on() {
    let app = TestApp::start().await;
    let router = Router::new()
        // Public ones, so that nobody is asked for a token.
        .route("/", get(async || "fine"))
        .route("/docs", get(boom))
        .route("/openapi.json", get(boom_later))
        .layer(middleware::from_fn_with_state(app.state.clone(), api::edge::layer));
    let config = app.state.config.runtime.http.clone();
    let listener = server::bind(config.host, 0).unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let lifecycle = app.state.lifecycle.clone();
    lifecycle.spawn("panicking server", server::serve(listener, router, config, lifecycle.clone()));
    // One connection at most, so that it is the same one while it lasts.
    let client = reqwest::Client::builder().pool_max_idle_per_host(1).build().unwrap();
    let ask = async |path: &str| client.get(format!("{url}{path}")).send().await.unwrap();
    for _ in 0..3 {
        let response = ask("/docs").await;
        assert_eq!(response.status(), 500);
        assert!(HEADERS.iter().all(|name| response.headers().contains_key(*name)));
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let text = response.text().await.unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["code"], "internal");
        assert_eq!(ask("/").await.text().await.unwrap(), "fine");

        let cut = ask("/openapi.json").await;
        assert_eq!(cut.status(), 200);
        cut.text().await.expect_err("a body that is not whole does not end as if it were");
        assert_eq!(ask("/").await.text().await.unwrap(), "fine");
    }
}

/// Case H9: also where only health and metrics are served.
#[tokio::test(flavor = "multi_thread")]
async fn the_worker_and_the_admin_port_answer_with_the_same_headers_and_problem_documents() {
    let deployment = Deployment::new().await;
    let (port, admin) = (free_port(), free_port());
    let admin_text = admin.to_string();
    let vars = [("ADMIN_PORT", admin_text.as_str()), ("METRICS_TOKEN", "a-metrics-token-of-24-bytes")];
    let _worker = deployment.start("worker", port, &vars);
    ready(port).await;
    let client = reqwest::Client::new();
    let propfind = || reqwest::Method::from_bytes(b"PROPFIND").unwrap();
    let cases = [
        (port, reqwest::Method::GET, "/livez", 200),
        (port, reqwest::Method::GET, "/metrics", 401),
        (port, reqwest::Method::GET, "/nope", 404),
        (port, propfind(), "/livez", 405),
        (admin, reqwest::Method::GET, "/metrics", 200),
        (admin, reqwest::Method::GET, "/nope", 404),
        (admin, propfind(), "/livez", 405),
    ];
    for (port, method, path, status) in cases {
        let answer = client.request(method, format!("http://127.0.0.1:{port}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let headers = answer.headers().clone();
        assert!(HEADERS.iter().all(|name| headers.contains_key(*name)), "{path}: {headers:?}");
        if status != 200 {
            assert_eq!(headers["content-type"], "application/problem+json", "{path}");
            let body: Value = answer.json().await.unwrap();
            assert_eq!(
                (&body["status"], &body["request_id"]),
                (&status.into(), &headers["x-request-id"].to_str().unwrap().into())
            );
        }
    }
}

/// `REQUEST_TIMEOUT`: what waits for something that does not come ends, and what streams does not.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_request_ends_after_the_request_timeout_and_a_stream_goes_on() {
    let app = TestApp::with(&[("REQUEST_TIMEOUT", "1s")]).await;
    let user = app.user().await;
    let mut holding = app.database.pool().begin().await.unwrap();
    sqlx::query("lock table users in access exclusive mode").execute(&mut *holding).await.unwrap();
    let ask = serde_json::json!({
        "model": "sim", "stream": true,
        "messages": [{ "role": "user", "content": "[[sim tokens=8 token-interval-ms=300]] say something" }],
    });
    let started = std::time::Instant::now();
    let (refused, stream) = tokio::join!(user.get("/v1/me"), user.post("/v1/chat/completions", ask));
    drop(holding);
    let refused = refused.problem(503, "timeout");
    assert_eq!(refused.header("retry-after"), "1");
    let stream = stream.expect(200);
    assert!(stream.text.contains("data: [DONE]"), "{}", stream.text);
    assert!(started.elapsed().as_millis() > 2_000, "the stream was longer than the timeout");
}

#[tokio::test]
async fn the_api_page_describes_every_route_and_loads_nothing() {
    let app = TestApp::start().await;
    let page = app.anonymous().get("/docs").await.expect(200);
    // The policy names the hash of each inline element that is served (CSP, level 3, section 8.4), and no other source.
    let styles = page.text.split("<style>").skip(1).map(|rest| rest.split_once("</style>").unwrap().0);
    let hashes: Vec<String> = styles
        .map(|style| format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, style.as_bytes()))))
        .collect();
    assert_eq!(hashes.len(), 1);
    let policy = page.header("content-security-policy");
    let directives: Vec<&str> = policy.split("; ").collect();
    assert!(directives.contains(&format!("style-src {}", hashes.join(" ")).as_str()), "{hashes:?}: {policy}");
    assert!(directives.contains(&"default-src 'none'") && !policy.contains("script-src"), "{policy}");
    for foreign in ["<script", "style=", "src=", "url(", "@import", "href=\"http"] {
        assert!(!page.text.contains(foreign), "{foreign}");
    }
    let document = app.anonymous().get("/openapi.json").await.expect(200).json();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(page.text.contains(path.as_str()), "{path}");
    }
}

#[tokio::test]
async fn ordinary_answers_are_compressed_for_those_who_can_read_it_and_streams_for_nobody() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let plain = app.anonymous().get("/openapi.json").await.expect(200);
    assert_eq!(plain.header("content-encoding"), "");
    for (accepted, coding) in [("gzip", "gzip"), ("br;q=1, gzip;q=0.5", "br"), ("zstd", ""), ("gzip;q=0", "")]
    {
        let request = app
            .anonymous()
            .request(reqwest::Method::GET, "/openapi.json")
            .header("accept-encoding", accepted);
        let response = request.send().await.unwrap();
        let header = |name: &str| response.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        assert_eq!(header("content-encoding"), coding, "{accepted}");
        assert!(header("vary").contains("accept-encoding"), "{accepted}: {}", header("vary"));
        let length = response.bytes().await.unwrap().len();
        let smaller = if coding.is_empty() { plain.text.len() } else { plain.text.len() / 3 };
        assert!(length <= smaller, "{accepted}: {length} bytes of {}", plain.text.len());
    }
    let ask = serde_json::json!({
        "model": "sim", "stream": true, "messages": [{ "role": "user", "content": "tell me something long" }],
    });
    let request = user.request(reqwest::Method::POST, "/v1/chat/completions").json(&ask);
    let stream = user.send(request.header("accept-encoding", "gzip, br")).await.expect(200);
    assert!(stream.header("content-type").starts_with("text/event-stream"), "{:?}", stream.headers);
    assert_eq!(stream.header("content-encoding"), "");
    assert!(stream.text.contains("data: [DONE]"), "{}", stream.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn invented_methods_paths_and_headers_make_no_metric_of_their_own() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let _api = deployment.start("api", port, &[]);
    ready(port).await;
    let url = format!("http://127.0.0.1:{port}");
    let client = reqwest::Client::new();
    for i in 0..200 {
        let method = reqwest::Method::from_bytes(format!("BOGUS{i}").as_bytes()).unwrap();
        for path in ["/livez", "/v1/me", "/v1/jobs/{id}/events"] {
            let path = if i % 2 == 0 { path.to_owned() } else { format!("{path}-BOGUS{i}") };
            let request = client.request(method.clone(), format!("{url}{path}"));
            let answer = request.bearer_auth(format!("BOGUS{i}")).header("host", format!("BOGUS{i}")).send();
            assert!(answer.await.unwrap().status().is_client_error());
        }
    }
    let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("BOGUS"), "{metrics}");
    assert!(metrics.contains(r#"method="other""#), "{metrics}");
}
