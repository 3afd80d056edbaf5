//! Rate limits, through the API.

mod admin;
mod clients;

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, future::join_all, stream};
use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, Persona, TestApp, eventually};

/// A request that charges the policies `global` and `refresh` on its address, costs nothing else, and answers 401.
async fn knock(persona: &Persona) -> Answer {
    persona.refresh("no such token").await
}

/// How many of so many knocks are let through; the rest must be refused as the limits refuse.
fn let_through(answers: impl IntoIterator<Item = Answer>) -> usize {
    let mut passed = 0;
    for answer in answers {
        if answer.status == 401 {
            passed += 1;
        } else {
            answer.problem(429, "rate_limited");
        }
    }
    passed
}

/// Whether Redis has decided: development has 10000/15m, and a replica on its own allows half of that.
fn is_shared(answer: &Answer) -> bool {
    answer.header("ratelimit-policy").contains(r#""global";q=10000;"#)
}

/// 500 requests, a hundred at once, over three replicas (500 at once ask the limiter itself in `crates/limits/tests`). Where this machine is so busy that Redis was not reached in time, local limits
/// have decided, as they should; that says nothing about the shared ones, so it is done again with other subjects.
async fn storm<F: Future<Output = Answer>>(
    replicas: &[Persona; 3],
    request: impl Fn(usize, Persona) -> F,
) -> (Vec<Answer>, Duration) {
    for round in 0..20 {
        for replica in replicas {
            let shared = async || is_shared(&knock(replica).await);
            eventually("Redis decides", Duration::from_secs(30), shared).await;
        }
        let started = Instant::now();
        let requests = (0..500).map(|i| request(round, replicas[i % 3].clone()));
        let answers: Vec<_> = stream::iter(requests).buffer_unordered(100).collect().await;
        if answers.iter().all(is_shared) {
            return (answers, started.elapsed());
        }
    }
    panic!("this machine is too busy for the limits to be shared");
}

/// Case R1: a strict window.
#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_let_exactly_five_of_500_parallel_logins_through() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "5/15m"), ("PASSWORD_HASH_CONCURRENCY", "4")]).await;
    let replicas = [&app, &app.replica(), &app.replica()].map(TestApp::anonymous);
    let (answers, _) = storm(&replicas, |round, replica| async move {
        let body = json!({ "email": format!("victim{round}@example.com"), "password": "guess guess" });
        replica.post("/v1/auth/login", body).await
    })
    .await;
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap();
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((850..=900).contains(&wait), "{wait}");
    assert!(
        refused.header("ratelimit").contains(&format!(r#""login";r=0;t={wait}"#)),
        "{:?}",
        refused.headers
    );
    assert!(refused.header("ratelimit-policy").contains(r#""login";q=5;w=900"#), "{:?}", refused.headers);
    assert_eq!(let_through(answers), 5);
}

/// Case R1: a rate, whose burst is exact and which refills meanwhile; and waiting as long as told is enough.
#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_let_the_burst_and_what_refills_through() {
    let app = TestApp::with(&[("RATE_LIMIT_REFRESH", "100/50s"), ("TRUSTED_PROXY", "127.0.0.0/8")]).await;
    let replicas = [&app, &app.replica(), &app.replica()].map(TestApp::anonymous);
    let (answers, took) = storm(&replicas, |round, replica| async move {
        knock(&replica.behind(format!("203.0.113.{round}"))).await
    })
    .await;
    let passed = let_through(answers);
    let refilled = took.as_millis() as usize / 500 + 1;
    assert!((100..=100 + refilled).contains(&passed), "{passed} in {took:?}");
    // The clients of the storm have had theirs; this one has not.
    let client = replicas[0].behind("198.51.100.7");
    let refused = loop {
        let answer = knock(&client).await;
        if answer.status == 429 {
            break answer;
        }
    };
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert_eq!(wait, 1, "half a second, in whole ones");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    knock(&client).await.expect(401);
}

#[tokio::test]
async fn a_refusal_tells_all_and_scripts_of_other_origins_can_read_it() {
    let origin = "https://app.example.com";
    let app = TestApp::with(&[("CORS_ALLOWED_ORIGINS", origin), ("RATE_LIMIT_USER_JOBS", "2/1h")]).await;
    let user = app.user().await;
    let start = async || {
        let job = json!({ "kind": "echo", "args": { "message": "x" } });
        user.send(user.request(Method::POST, "/v1/jobs").header("origin", origin).json(&job)).await
    };
    for left in ["1", "0"] {
        let answer = start().await.expect(202);
        assert!(
            answer.header("ratelimit").contains(&format!(r#""user-jobs";r={left};t="#)),
            "{:?}",
            answer.headers
        );
    }
    let refused = start().await.problem(429, "rate_limited");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((3_500..=3_600).contains(&wait), "{wait}");
    assert!(
        refused.header("ratelimit").ends_with(&format!(r#""user-jobs";r=0;t={wait}"#)),
        "{:?}",
        refused.headers
    );
    assert!(
        refused.header("ratelimit-policy").ends_with(r#""user-jobs";q=2;w=3600"#),
        "{:?}",
        refused.headers
    );
    assert_eq!(refused.header("access-control-allow-origin"), origin);
    let readable = refused.header("access-control-expose-headers").to_lowercase();
    for name in refused.headers.keys().filter(|name| name.as_str().contains("rate") || *name == "retry-after")
    {
        assert!(readable.contains(name.as_str()), "{name} is not among {readable}");
    }
    assert!(readable.contains("x-ratelimit-remaining-tokens"), "{readable}");
    user.get("/v1/me").await.expect(200);
    app.user()
        .await
        .post("/v1/jobs", json!({ "kind": "echo", "args": { "message": "x" } }))
        .await
        .expect(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_burst_shield_stands_before_everything_and_spares_the_probes() {
    let app = TestApp::with(&[("TRUSTED_PROXY", "127.0.0.0/8")]).await;
    // 1000 at once and 200 a second pass; each request from another address of one subscriber.
    let client = app.anonymous();
    let (mut sent, mut refused) = (0_u32, None);
    while refused.is_none() && sent < 20_000 {
        let batch = (sent..sent + 200).map(|i| {
            let subscriber = client.behind(format!("2001:db8:1:2::{i:x}"));
            async move { subscriber.get("/v1/me").await }
        });
        refused = join_all(batch).await.into_iter().find(|answer| answer.status != 401);
        sent += 200;
    }
    assert!(sent > 1_000, "{sent}");
    let refused = refused.expect("more than 200 a second").problem(429, "too_fast");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    client.behind("2001:db8:1:2::7").get("/livez").await.expect(200);
    client.behind("2001:db8:1:3::1").get("/v1/me").await.expect(401);
}

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
        let body = json!({ "email": format!("f{i}@example.com") });
        let request = app.anonymous().request(reqwest::Method::POST, "/v1/auth/sign-up").json(&body);
        let forged = format!("10.0.0.{i}");
        let request = request
            .header("x-forwarded-for", &forged)
            .header("x-real-ip", &forged)
            .header("forwarded", format!("for={forged}"));
        seen.push(app.anonymous().send(request).await.status);
    }
    assert_eq!(seen, [202, 202, 429, 429]);
}

#[tokio::test]
async fn health_routes_are_not_limited() {
    let app = TestApp::with(&[("RATE_LIMIT_GLOBAL", "1/1h")]).await;
    for _ in 0..30 {
        app.anonymous().get("/livez").await.expect(200);
        app.anonymous().get("/readyz").await.expect(200);
    }
}
