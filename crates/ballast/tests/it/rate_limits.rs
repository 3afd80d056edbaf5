//! Rate limits, through the API.

use futures_util::future::join_all;
use serde_json::json;

use crate::support::TestApp;

#[tokio::test(flavor = "multi_thread")]
async fn the_login_limit_is_one_limit_over_two_replicas() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "5/15m"), ("PASSWORD_HASH_CONCURRENCY", "4")]).await;
    let other = app.replica();
    let body = json!({ "email": "victim@example.com", "password": "guess guess" });
    let attempts = (0..20).map(|i| {
        let replica = if i % 2 == 0 { &app } else { &other };
        let body = body.clone();
        async move { replica.anonymous().post("/v1/auth/login", body).await }
    });
    let answers = join_all(attempts).await;
    assert_eq!(answers.iter().filter(|a| a.status == 401).count(), 5);
    let refused = answers.into_iter().find(|a| a.status == 429).unwrap().problem(429, "rate_limited");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((880..=900).contains(&wait), "{wait}");
    let elsewhere = json!({ "email": "other@example.com", "password": "guess guess" });
    app.anonymous().post("/v1/auth/login", elsewhere).await.expect(401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_global_limit_is_per_user_and_says_when_to_come_back() {
    let app = TestApp::with(&[("RATE_LIMIT_GLOBAL", "10/1h")]).await;
    let other = app.replica();
    let (user, neighbour) = (app.user().await, app.user().await);
    let answers = join_all((0..30).map(|i| {
        let user = user.at(if i % 2 == 0 { &app } else { &other });
        async move { user.get("/v1/me").await }
    }))
    .await;
    let passed = answers.iter().filter(|a| a.status == 200).count();
    assert_eq!(passed, 10);
    for answer in answers.iter().filter(|a| a.status == 200) {
        assert!(answer.header("ratelimit-policy").contains("\"global\";q=10;w=3600"), "{:?}", answer.headers);
        assert!(answer.header("ratelimit").starts_with("\"global\";r="));
    }
    assert!(answers.iter().any(|a| a.status == 429 && !a.header("retry-after").is_empty()));
    neighbour.get("/v1/me").await.expect(200);
}

#[tokio::test]
async fn a_forged_forwarded_header_does_not_make_another_client() {
    let app = TestApp::with(&[("RATE_LIMIT_SIGNUP", "2/1h")]).await;
    let mut seen = Vec::new();
    for i in 0..4 {
        let body = json!({ "email": format!("f{i}@example.com"), "password": "long enough" });
        let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/register").json(&body);
        let forged = format!("10.0.0.{i}");
        let request = request
            .header("x-forwarded-for", &forged)
            .header("x-real-ip", &forged)
            .header("forwarded", format!("for={forged}"));
        seen.push(app.anonymous().send(request).await.status);
    }
    assert_eq!(seen, [201, 201, 429, 429]);
}

#[tokio::test]
async fn health_routes_are_not_limited() {
    let app = TestApp::with(&[("RATE_LIMIT_GLOBAL", "1/1h")]).await;
    for _ in 0..30 {
        app.anonymous().get("/livez").await.expect(200);
        app.anonymous().get("/readyz").await.expect(200);
    }
}
