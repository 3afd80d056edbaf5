//! Rules that hold for every route there is, read from the API's own description.

use api::auth::PUBLIC_ROUTES;
use reqwest::Method;
use serde_json::Value;

use crate::support::TestApp;

fn operations(document: &Value) -> Vec<(String, String)> {
    let paths = document["paths"].as_object().unwrap();
    let mut all = Vec::new();
    for (path, item) in paths {
        for method in ["get", "post", "put", "patch", "delete"] {
            if item.get(method).is_some() {
                all.push((method.to_uppercase(), path.clone()));
            }
        }
    }
    all
}

fn concrete(path: &str) -> String {
    path.split('/')
        .map(|part| {
            if part.starts_with('{') {
                if part.contains('*') { "stream" } else { "00000000-0000-7000-8000-000000000000" }
            } else {
                part
            }
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test]
async fn without_credentials_every_route_but_the_public_ones_answers_401() {
    let app = TestApp::start().await;
    let document = app.anonymous().get("/openapi.json").await.expect(200).json();
    let operations = operations(&document);
    assert!(operations.len() >= 10, "{operations:?}");
    for (method, path) in operations {
        let request =
            app.anonymous().request(Method::from_bytes(method.as_bytes()).unwrap(), &concrete(&path));
        let answer = app.anonymous().send(request).await;
        if PUBLIC_ROUTES.contains(&(method.as_str(), path.as_str())) {
            assert_ne!(answer.status, 401, "{method} {path} is public");
        } else {
            assert_eq!(answer.status, 401, "{method} {path}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn every_route_charges_the_global_limit() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let document = app.anonymous().get("/openapi.json").await.expect(200).json();
    for (method, path) in operations(&document) {
        if PUBLIC_ROUTES.contains(&(method.as_str(), path.as_str())) {
            continue;
        }
        let request = user.request(Method::from_bytes(method.as_bytes()).unwrap(), &concrete(&path)).json(&serde_json::json!({"model": "sim-small", "input": "x", "messages": [{"role": "user", "content": "x"}], "kind": "echo", "name": "x"}));
        let answer = user.send(request).await;
        let charged = answer.header("ratelimit").contains("\"global\"");
        // A refusal of the arguments may come before or after admission; what went through was charged.
        assert!(
            charged || (400..500).contains(&answer.status),
            "{method} {path}: {} {}",
            answer.status,
            answer.text
        );
    }
}
