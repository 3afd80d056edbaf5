//! What every answer has.

use axum::{Router, body::Body, http::Request, middleware, routing::get};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::support::TestApp;

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

async fn boom() -> String {
    panic!("the secret is hunter2")
}

/// Case H9, panics.
#[tokio::test]
async fn a_panic_is_a_500_that_tells_nothing_and_the_process_goes_on() {
    let app = TestApp::start().await;
    let router = Router::new()
        .route("/boom", get(boom))
        .layer(middleware::from_fn_with_state(app.state.clone(), api::edge::layer));
    for _ in 0..3 {
        let response =
            router.clone().oneshot(Request::get("/boom").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 500);
        assert!(HEADERS.iter().all(|name| response.headers().contains_key(*name)));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["code"], "internal");
    }
}

#[tokio::test]
async fn the_api_page_describes_every_route_and_loads_nothing() {
    let app = TestApp::start().await;
    let page = app.anonymous().get("/docs").await.expect(200);
    assert!(page.header("content-security-policy").contains("style-src 'sha256-"), "{:?}", page.headers);
    for foreign in ["<script", "src=", "url(", "@import", "href=\"http"] {
        assert!(!page.text.contains(foreign), "{foreign}");
    }
    let document = app.anonymous().get("/openapi.json").await.expect(200).json();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(page.text.contains(path.as_str()), "{path}");
    }
}
