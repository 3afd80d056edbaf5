//! Answers that are kept.

use std::time::Instant;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use test_support::OwnServices;

use super::{MS, S, chat, nothing_is_left, usage_rows, whole};
use crate::support::{Answer, Persona, TestApp, eventually};

const CHAT: &str = "/v1/chat/completions";

/// A request with `X-AI-Cache`; no header when `wish` is empty.
async fn ask(user: &Persona, route: &str, wish: &str, body: &Value) -> Answer {
    let mut request = user.request(Method::POST, route).json(body);
    if !wish.is_empty() {
        request = request.header("x-ai-cache", wish);
    }
    user.send(request).await
}

/// What became of a request: the word in its answer's header, empty without one.
async fn asked(user: &Persona, route: &str, wish: &str, body: &Value) -> String {
    ask(user, route, wish, body).await.expect(200).header("x-ai-cache").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_again_is_answered_from_the_cache_on_any_replica_and_costs_no_tokens() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    let embedding = json!({"model": "sim-embedding", "input": ["a", "漢字"], "dimensions": 8});
    let routes = [
        (CHAT, whole(CHAT, "[[sim tokens=7]] 漢字😀")),
        ("/v1/responses", whole("/v1/responses", "[[sim tokens=7]]")),
        ("/v1/embeddings", embedding),
    ];
    for (n, (route, body)) in routes.iter().enumerate() {
        let first = ask(&user, route, "on", body).await.expect(200);
        assert_eq!((first.header("x-ai-cache"), first.header("age")), ("miss", ""), "{route}");
        for replica in [&app, &other] {
            let again = ask(&user.at(replica), route, "on", body).await.expect(200);
            assert_eq!(again.header("x-ai-cache"), "hit", "{route}");
            assert!(again.header("age").parse::<u64>().unwrap() < 60, "{route}");
            assert_eq!(again.header("content-type"), "application/json");
            assert_eq!(again.text, first.text, "byte for byte: {route}");
            assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
        }
        assert_eq!(app.engine.stats().requests_total, n as u64 + 1, "{route}");
    }
    // Two of three requests on each route came from the cache: counted, and for nothing.
    assert!(other.state.ai.flush_usage().await);
    let data = user.get("/v1/usage").await.expect(200).json()["data"].clone();
    let sum =
        |field: &str| data.as_array().unwrap().iter().map(|row| row[field].as_i64().unwrap()).sum::<i64>();
    assert_eq!((sum("requests"), sum("cached"), sum("errors"), sum("completion_tokens")), (9, 6, 0, 14));
    let rows: Vec<(bool, String, i64, i64, bool)> = sqlx::query_as(
        "select cached, engine, prompt_tokens, completion_tokens, estimated from usage_event where cached",
    )
    .fetch_all(app.database.pool())
    .await
    .unwrap();
    assert_eq!(rows, vec![(true, "cache".to_owned(), 0, 0, false); 6]);
    nothing_is_left(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_unless_the_request_or_its_route_says_so() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = whole(CHAT, "x");
    for wish in ["", "off", ""] {
        assert_eq!(asked(&user, CHAT, wish, &body).await, "", "{wish}");
    }
    assert_eq!(asked(&user, CHAT, "on", &body).await, "miss", "nothing was kept before");
    assert_eq!(asked(&user, CHAT, "", &body).await, "", "who does not ask for it does not get it");
    assert_eq!(app.engine.stats().requests_total, 5);

    let by_route = app.replica_with(&[("AI_CACHE_ROUTES", "chat, embeddings")]);
    let user = user.at(&by_route);
    assert_eq!(asked(&user, CHAT, "", &body).await, "hit");
    assert_eq!(asked(&user, CHAT, "off", &body).await, "");
    let responses = whole("/v1/responses", "x");
    assert_eq!(asked(&user, "/v1/responses", "", &responses).await, "", "not that route");
    // A stream is never cached; only who asked for it is told.
    for (wish, word) in [("", ""), ("on", "bypass")] {
        let answer = ask(&user, CHAT, wish, &chat("x")).await.expect(200);
        assert_eq!(answer.header("x-ai-cache"), word);
        assert!(answer.text.ends_with("data: [DONE]\n\n"));
    }
    assert_eq!(asked(&user, "/v1/ai/stream", "on", &json!({"prompt": "x", "stream": false})).await, "bypass");
    let refused = ask(&user, CHAT, "yes", &body).await.expect(400).json();
    assert_eq!(
        (&refused["error"]["param"], &refused["error"]["code"]),
        (&json!("X-AI-Cache"), &json!("invalid"))
    );
    assert!(usage_rows(&by_route).await.iter().all(|row| row.0 == "ok"), "a refused request is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_never_get_each_others_answers_unless_the_configuration_says_so() {
    let app = TestApp::start().await;
    let (one, two) = (app.user().await, app.user().await);
    let key = app.api_key(&one, &["ai"]).await;
    let body = whole(CHAT, "a secret question");
    assert_eq!(asked(&one, CHAT, "on", &body).await, "miss");
    assert_eq!(asked(&two, CHAT, "on", &body).await, "miss");
    assert_eq!(asked(&key, CHAT, "on", &body).await, "hit", "a key is its user");

    let shared = app.replica_with(&[("AI_CACHE_SHARED", "true")]);
    assert_eq!(asked(&one.at(&shared), CHAT, "on", &body).await, "miss", "what was private stays private");
    assert_eq!(asked(&two.at(&shared), CHAT, "on", &body).await, "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_the_answer_makes_another_request() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = whole(CHAT, "x");
    assert_eq!(asked(&user, CHAT, "on", &body).await, "miss");
    let mut same = body.clone();
    same["stream"] = json!(false);
    assert_eq!(asked(&user, CHAT, "on", &same).await, "hit", "not to stream is the default");
    for (field, value) in [
        ("model", json!("sim-large")),
        ("temperature", json!(0.1)),
        ("seed", json!(7)),
        ("max_tokens", json!(9)),
        ("messages", json!([{"role": "user", "content": "X"}])),
        ("unknown_to_us", json!(null)),
    ] {
        let mut other = body.clone();
        other[field] = value;
        assert_eq!(asked(&user, CHAT, "on", &other).await, "miss", "{field}");
        assert_eq!(asked(&user, CHAT, "on", &other).await, "hit", "{field}");
    }
    let mut stateful = body.clone();
    stateful["store"] = json!(true);
    assert_eq!(asked(&user, CHAT, "on", &stateful).await, "bypass");
    // Headers that the engine gets to see.
    for (header, value) in [("accept-language", "de"), ("openai-beta", "x=1")] {
        let request = user.request(Method::POST, CHAT).header("x-ai-cache", "on").header(header, value);
        assert_eq!(user.send(request.json(&body)).await.expect(200).header("x-ai-cache"), "miss", "{header}");
    }
    // The answer of another engine is another answer.
    let elsewhere = app.replica_with(&[(
        "ENGINE_URL",
        &format!("{}/v1/", app.engine.url()).replace("127.0.0.1", "localhost"),
    )]);
    assert_eq!(asked(&user.at(&elsewhere), CHAT, "on", &body).await, "miss");
    assert_eq!(asked(&user, CHAT, "on", &body).await, "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_kept_for_its_time_and_refreshed_on_demand() {
    let app = TestApp::with(&[("AI_CACHE_TTL", "1s")]).await;
    let user = app.user().await;
    let body = whole(CHAT, "x");
    assert_eq!(asked(&user, CHAT, "on", &body).await, "miss");
    assert_eq!(asked(&user, CHAT, "on", &body).await, "hit");
    assert_eq!(asked(&user, CHAT, "refresh", &body).await, "miss", "the engine is asked");
    assert_eq!(asked(&user, CHAT, "on", &body).await, "hit", "and its new answer kept");
    eventually("it is too old", S(5), async || asked(&user, CHAT, "on", &body).await == "miss").await;
    eventually("nothing is left of it", S(5), async || keys(&app).await.is_empty()).await;
}

/// Keys of the cache in Redis.
async fn keys(app: &TestApp) -> Vec<String> {
    let pattern = app.state.redis.key("cache:*");
    let mut command = db::redis_client::cmd("KEYS");
    command.arg(&pattern);
    app.state.redis.call(async |c| command.query_async(c).await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_answers_take_no_more_places_than_there_are_and_a_large_one_takes_none() {
    let app = TestApp::with(&[
        ("AI_CACHE_PLACES", "10"),
        ("AI_CACHE_MAX_BYTES", "4096"),
        ("AI_CONCURRENT_STREAMS", "1000"),
        ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
        ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
    ])
    .await;
    let user = app.user().await;
    let body = |n: usize| json!({"model": "m", "input": format!("{n}"), "dimensions": 8});
    for round in 0..20 {
        let answers = (0..50).map(|i| {
            let (user, body) = (&user, body(round * 50 + i));
            async move { asked(user, "/v1/embeddings", "on", &body).await }
        });
        assert!(join_all(answers).await.iter().all(|word| word != "hit"));
    }
    let kept = keys(&app).await;
    assert!((5..=10).contains(&kept.len()), "{kept:?}");
    let large = whole(CHAT, "[[sim tokens=2000]]");
    assert_eq!(asked(&user, CHAT, "on", &large).await, "miss");
    // It is not kept, and those who come within the next second don't wait for it.
    assert_eq!(asked(&user, CHAT, "on", &large).await, "miss");
    let mut pipe = db::redis_client::pipe();
    for key in &keys(&app).await {
        pipe.cmd("STRLEN").arg(key);
    }
    let lengths: Vec<usize> = app.state.redis.call(async |c| pipe.query_async(c).await).await.unwrap();
    assert!(lengths.iter().all(|length| *length <= 4_096 + 42), "{lengths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_ask_the_same_at_the_same_time_on_two_replicas_one_asks_the_engine() {
    let app = TestApp::with(&[("AI_CONCURRENT_STREAMS", "100")]).await;
    let other = app.replica();
    let user = app.user().await;
    let body = whole(CHAT, "[[sim tokens=20 token-interval-ms=50]]");
    let answers = (0..20).map(|i| {
        let user = user.at(if i % 2 == 0 { &app } else { &other });
        let body = &body;
        async move { ask(&user, CHAT, "on", body).await.expect(200) }
    });
    let answers = join_all(answers).await;
    let count = |word: &str| answers.iter().filter(|answer| answer.header("x-ai-cache") == word).count();
    // On a machine so busy that Redis does not answer in time, a few may pass the cache by.
    let (misses, bypassed) = (count("miss"), count("bypass"));
    assert!(misses == 1 && bypassed < 10, "{misses} {bypassed}");
    assert_eq!(app.engine.stats().requests_total as usize, misses + bypassed, "the others waited for it");
    assert!(answers.iter().all(|answer| answer.text == answers[0].text));
    nothing_is_left(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_ever_for_the_one_who_asks() {
    // Its answer takes longer than others wait.
    let app = TestApp::with(&[("AI_CACHE_WAIT", "300ms")]).await;
    let user = app.user().await;
    let slow = whole(CHAT, "[[sim tokens=30 token-interval-ms=50]]");
    let started = Instant::now();
    let (first, second) = tokio::join!(asked(&user, CHAT, "on", &slow), async {
        app.engine.wait_for(S(5), |stats| stats.requests_open == 1).await;
        asked(&user, CHAT, "on", &slow).await
    });
    assert_eq!((first.as_str(), second.as_str()), ("miss", "miss"));
    assert_eq!(app.engine.stats().requests_total, 2);
    assert!(started.elapsed() < S(6), "{:?}", started.elapsed());

    // It leaves: whoever waits takes over.
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = whole(CHAT, "[[sim tokens=40 token-interval-ms=50]]");
    let leaver = user.request(Method::POST, CHAT).header("x-ai-cache", "on").json(&body).send();
    let waiter = async {
        app.engine.wait_for(S(5), |stats| stats.requests_open == 1).await;
        asked(&user, CHAT, "on", &body).await
    };
    let mut waiter = Box::pin(waiter);
    tokio::select! {
        answer = leaver => panic!("{answer:?}"),
        word = &mut waiter => panic!("{word}"),
        () = tokio::time::sleep(MS(700)) => {}
    }
    assert_eq!(waiter.await, "miss");
    assert_eq!(asked(&user, CHAT, "on", &body).await, "hit");
    let stats = app.engine.stats();
    assert_eq!(
        (stats.cancelled, stats.requests_total),
        (1, 2),
        "the request of the one who left was cancelled"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_one_who_asks_crashes_another_takes_over_within_its_lease() {
    let app = TestApp::start().await;
    let crashing = app.replica();
    let user = app.user().await;
    let body = whole(CHAT, "[[sim tokens=20 token-interval-ms=100]]");
    let lost = user.at(&crashing).request(Method::POST, CHAT).header("x-ai-cache", "on").json(&body).send();
    let lost = tokio::spawn(lost);
    app.engine.wait_for(S(5), |stats| stats.requests_open == 1).await;
    let lead: Vec<String> = keys(&app).await.into_iter().filter(|key| key.contains("cache:lead:")).collect();
    let [lead] = lead.as_slice() else { panic!("{lead:?}") };
    // As a process that was killed leaves it: the lead is there, its holder will never come back.
    let mut orphan = db::redis_client::cmd("SET");
    orphan.arg(lead).arg("somebody who is dead").arg("PX").arg(3_000);
    app.state.redis.call(async |c| orphan.query_async::<()>(c).await).await.unwrap();
    lost.abort();
    let started = Instant::now();
    assert_eq!(asked(&user, CHAT, "on", &body).await, "miss");
    assert!(started.elapsed() < S(12), "{:?}", started.elapsed());
    assert!(started.elapsed() > S(2), "it waited for the lease: {:?}", started.elapsed());
    assert_eq!(asked(&user, CHAT, "on", &body).await, "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lead_is_kept_however_long_the_engine_takes() {
    let app = TestApp::start().await;
    let user = app.user().await;
    // Longer than a lease.
    let body = whole(CHAT, "[[sim tokens=50 token-interval-ms=100]]");
    let (first, second) = tokio::join!(asked(&user, CHAT, "on", &body), async {
        tokio::time::sleep(S(4)).await;
        asked(&user, CHAT, "on", &body).await
    });
    assert_eq!((first.as_str(), second.as_str()), ("miss", "hit"));
    assert_eq!(app.engine.stats().requests_total, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_never_kept_and_hold_nobody_up() {
    let app = TestApp::with(&[("ENGINE_RETRIES", "0"), ("AI_CONCURRENT_STREAMS", "100")]).await;
    let user = app.user().await;
    for (fault, status) in
        [("status:500", 502), ("status:400", 400), ("html", 502), ("reset:1", 502), ("garbage:100", 502)]
    {
        let body = whole(CHAT, &format!("x {fault}"));
        app.engine.set_defaults(&format!("fault={fault}"));
        let failed = ask(&user, CHAT, "on", &body).await.expect(status);
        assert_eq!(failed.header("x-ai-cache"), "");
        app.engine.clear_defaults();
        assert_eq!(asked(&user, CHAT, "on", &body).await, "miss", "{fault}");
        assert_eq!(asked(&user, CHAT, "on", &body).await, "hit", "{fault}");
    }
    // Twenty at once, and an engine that fails after a second: they don't try one after the other.
    let body = whole(CHAT, "[[sim fault=status:500 first-token-ms=1000]]");
    let started = Instant::now();
    let answers = join_all((0..20).map(|_| ask(&user, CHAT, "on", &body))).await;
    assert!(answers.iter().all(|answer| matches!(answer.status, 502 | 503)));
    assert!(started.elapsed() < S(8), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_limits_hold_for_hits_too() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_REQUESTS", "4/1h")]).await;
    let user = app.user().await;
    let body = whole(CHAT, "[[sim tokens=2]]");
    for word in ["miss", "hit"] {
        assert_eq!(asked(&user, CHAT, "on", &body).await, word);
    }
    ask(&app.anonymous(), CHAT, "on", &body).await.expect(401);
    let wrong_key = app.api_key(&user, &["jobs"]).await;
    ask(&wrong_key, CHAT, "on", &body).await.expect(403);
    // The wrong key has taken one of its user's.
    assert_eq!(asked(&user, CHAT, "on", &body).await, "hit");
    let refused = ask(&user, CHAT, "on", &body).await.expect(429);
    assert_eq!(refused.header("x-ai-cache"), "");
    assert_eq!(refused.json()["error"]["code"], "rate_limited");
    user.logout(&user.refresh_token).await.expect(204);
    ask(&user, CHAT, "on", &body).await.expect(401);
    assert_eq!(app.engine.stats().requests_total, 1);

    // A hit reserves more than a thousand tokens, and gives all of them back.
    let app = TestApp::with(&[("RATE_LIMIT_AI_TOKENS", "1500/1d")]).await;
    let user = app.user().await;
    for word in ["miss", "hit", "hit", "hit", "hit"] {
        eventually("the tokens of the request before are back", S(5), async || {
            let answer = ask(&user, CHAT, "on", &body).await;
            assert!(answer.status == 429 || answer.header("x-ai-cache") == word, "{word}: {}", answer.text);
            answer.status == 200
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_the_engine_is_asked_and_nobody_notices() {
    let own = OwnServices::start().await;
    let app = TestApp::with(&[("REDIS_URL", &own.redis_url), ("AI_CACHE_ROUTES", "chat")]).await;
    let user = app.user().await;
    let body = whole(CHAT, "x");
    assert_eq!(asked(&user, CHAT, "", &body).await, "miss");
    assert_eq!(asked(&user, CHAT, "", &body).await, "hit");
    let redis = own.redis();
    redis.signal(Signal::SIGSTOP);
    for _ in 0..8 {
        let started = Instant::now();
        assert_eq!(asked(&user, CHAT, "", &body).await, "bypass");
        assert!(started.elapsed() < S(3), "{:?}", started.elapsed());
    }
    let started = Instant::now();
    assert_eq!(asked(&user, CHAT, "", &body).await, "bypass");
    assert!(started.elapsed() < S(2), "the breaker answers: {:?}", started.elapsed());
    redis.signal(Signal::SIGCONT);
    eventually("the cache is back", S(10), async || asked(&user, CHAT, "", &body).await == "hit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_answer_is_told_when_the_process_ends() {
    let app = TestApp::with(&[("SHUTDOWN_BUDGET", "2s")]).await;
    let user = app.user().await;
    let body = whole(CHAT, "[[sim fault=hang-before-headers]]");
    let both = tokio::spawn({
        let (user, body) = (user.clone(), body.clone());
        async move { tokio::join!(ask(&user, CHAT, "on", &body), ask(&user, CHAT, "on", &body)) }
    });
    app.engine.wait_for(S(5), |stats| stats.requests_open == 1).await;
    app.lifecycle.begin_shutdown();
    let (answers, _) = tokio::join!(both, app.lifecycle.run_until_stopped());
    let (one, two) = answers.unwrap();
    for answer in [one, two] {
        assert_eq!(answer.expect(503).json()["error"]["code"], "server_shutdown");
    }
}
