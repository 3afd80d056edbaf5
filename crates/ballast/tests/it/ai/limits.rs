//! Limits of AI routes.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::{S, chat, nothing_is_left, open, read, whole};
use crate::support::{TestApp, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn parallel_streams_never_get_more_tokens_than_there_are() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_TOKENS", "100/1m")]).await;
    let other = app.replica();
    let user = app.user().await;
    let mut body = chat("[[sim tokens=14 token-interval-ms=20]] 20 of these do not fit into 100");
    body["max_tokens"] = json!(14);
    let answers = join_all((0..20).map(|i| {
        let user = user.at(if i % 2 == 0 { &app } else { &other });
        let body = body.clone();
        async move { user.post("/v1/chat/completions", body).await }
    }))
    .await;
    let used = answers.iter().filter(|a| a.status == 200).count();
    // About 20 for the prompt and 14 for the answer are reserved by each.
    assert!((1..=4).contains(&used), "{used}");
    for answer in answers.iter().filter(|a| a.status != 200) {
        assert_eq!(answer.status, 429, "{}", answer.text);
        let error = &answer.json()["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limited")));
        assert!(answer.header("retry-after").parse::<u64>().unwrap() <= 60);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_held_until_the_stream_ends_and_no_longer() {
    let app = TestApp::with(&[("AI_CONCURRENT_STREAMS", "1")]).await;
    let other = app.replica();
    let user = app.user().await;
    let stream = open(&user, "/v1/chat/completions", chat("[[sim fault=stall:2]]")).await;
    for replica in [&app, &other] {
        let refused = user.at(replica).post("/v1/chat/completions", chat("x")).await.expect(429);
        assert_eq!(refused.header("retry-after"), "1");
    }
    assert_eq!(app.engine.stats().requests_total, 1, "refused before the engine is asked");
    drop(stream);
    eventually("the permit is back", S(2), async || {
        user.at(&other).post("/v1/chat/completions", chat("[[sim tokens=1]]")).await.status == 200
    })
    .await;
    nothing_is_left(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_used_is_given_back() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_TOKENS", "1500/1h")]).await;
    let user = app.user().await;
    // Each reserves more than a thousand and uses a dozen.
    for n in 0..5 {
        let answer =
            user.post("/v1/chat/completions", whole("/v1/chat/completions", "[[sim tokens=2]]")).await;
        let left: u64 = answer.expect(200).header("x-ratelimit-remaining-tokens").parse().unwrap();
        assert!(left < 500, "{n}: {left}");
        nothing_is_left(&app).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // An engine that fails costs nothing.
    for _ in 0..3 {
        user.post("/v1/chat/completions", chat("[[sim fault=status:500]]")).await.expect(502);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    read(&user, "/v1/chat/completions", chat("[[sim tokens=2]]")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_are_told_as_openai_tells_them() {
    let app =
        TestApp::with(&[("RATE_LIMIT_AI_REQUESTS", "60/1m"), ("RATE_LIMIT_AI_TOKENS", "6000/1m")]).await;
    let user = app.user().await;
    let mut body = chat("x");
    body["max_tokens"] = json!(5);
    let response = open(&user, "/v1/chat/completions", body).await;
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(
        (header("x-ratelimit-limit-requests"), header("x-ratelimit-remaining-requests")),
        ("60".into(), "59".into())
    );
    assert_eq!(header("x-ratelimit-limit-tokens"), "6000");
    assert!(header("x-ratelimit-remaining-tokens").parse::<u64>().unwrap() > 5_900);
    assert!(header("x-ratelimit-reset-requests").ends_with('s'), "{}", header("x-ratelimit-reset-requests"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_quota_is_not_worth_a_retry_and_a_prompt_beyond_it_never_passes() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_TOKENS_DAILY", "40/1d")]).await;
    let user = app.user().await;
    let body = whole("/v1/chat/completions", "[[sim tokens=40]]");
    user.post("/v1/chat/completions", body.clone()).await.expect(200);
    eventually("the quota is spent", S(2), async || {
        let answer = user.post("/v1/chat/completions", body.clone()).await;
        answer.status == 429 && answer.header("x-should-retry") == "false"
    })
    .await;
    let other = app.user().await;
    let long = whole("/v1/chat/completions", &"word ".repeat(1_000));
    let refused = other.post("/v1/chat/completions", long).await.expect(429);
    assert_eq!((refused.header("x-should-retry"), refused.header("retry-after")), ("false", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_tells_openais_headers_too() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_REQUESTS", "60/1m"), ("RATE_LIMIT_AI_TOKENS", "100/1m")]).await;
    let user = app.user().await;
    let mut body = chat("[[sim fault=stall:2]]");
    body["max_tokens"] = json!(80);
    let _held = open(&user, "/v1/chat/completions", body.clone()).await;
    let refused = user.post("/v1/chat/completions", body).await.expect(429);
    let number = |name: &str| refused.header(name).parse::<u64>().unwrap();
    assert_eq!((number("x-ratelimit-limit-requests"), number("x-ratelimit-limit-tokens")), (60, 100));
    assert_eq!(number("x-ratelimit-remaining-requests"), 59, "the refused one took none");
    assert!(number("x-ratelimit-remaining-tokens") < 90);
    let wait = number("retry-after");
    let reset = refused.header("x-ratelimit-reset-tokens").strip_suffix('s').unwrap();
    assert_eq!(reset.parse::<f64>().unwrap().ceil() as u64, wait, "the same time as in Retry-After");
    assert!(refused.header("ratelimit").contains(&format!("t={wait}")), "{:?}", refused.headers);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
}

/// The permit comes back after the answer's end, and the next request may be faster.
#[tokio::test(flavor = "multi_thread")]
async fn one_stream_at_a_time_is_enough_for_200_requests_one_after_the_other() {
    let app = TestApp::with(&[("AI_CONCURRENT_STREAMS", "1")]).await;
    let other = app.replica();
    let user = app.user().await;
    for n in 0..200 {
        // As streams and in one piece, and every tenth time at the other replica.
        let user = user.at(if n % 10 == 9 { &other } else { &app });
        if n % 2 == 0 {
            let text = read(&user, "/v1/chat/completions", chat("[[sim tokens=1]]")).await;
            assert!(text.contains("[DONE]"), "{n}: {text}");
        } else {
            let body = whole("/v1/chat/completions", "[[sim tokens=1]]");
            user.post("/v1/chat/completions", body).await.expect(200);
        }
    }
}

/// Requests by the hour and tokens by the day of one key: refused with it, and not to its user.
#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_key_are_its_own() {
    let app = TestApp::start().await;
    let (admin, user) = (app.admin().await, app.user().await);
    for (limits, policy, at_most) in [
        (json!({"ai-requests": "2/1h"}), "ai-requests", 2),
        (json!({"ai-tokens-daily": "60/1d"}), "ai-tokens-daily", 3),
    ] {
        let made =
            user.post("/v1/api-keys", json!({"name": policy, "scopes": ["ai"]})).await.expect(201).json();
        let key = app.anonymous().with_token(made["key"].as_str().unwrap());
        let path = format!("/v1/admin/api-keys/{}/limits", made["id"].as_str().unwrap());
        admin.send(admin.request(Method::PUT, &path).json(&json!({"limits": limits}))).await.expect(200);
        let body = whole("/v1/chat/completions", "[[sim tokens=30]]");
        let mut passed = 0;
        let refused = loop {
            // What the one before did not use comes back first.
            nothing_is_left(&app).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let answer = key.post("/v1/chat/completions", body.clone()).await;
            if answer.status != 200 {
                break answer.expect(429);
            }
            passed += 1;
            assert!(passed <= at_most, "{policy}");
        };
        assert!(passed > 0, "{policy}");
        assert_eq!(refused.json()["error"]["code"], "rate_limited");
        assert!(refused.header("ratelimit").contains(policy), "{:?}", refused.headers);
        assert_eq!(refused.header("x-should-retry"), "false", "{policy}: it takes hours");
        user.post("/v1/chat/completions", body).await.expect(200);
    }
}
