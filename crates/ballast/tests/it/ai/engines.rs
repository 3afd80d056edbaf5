//! Several engines: failover, breakers, models, and what an engine that is away does to everybody else.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use engine_sim::{Sim, SimConfig};
use futures_util::future::join_all;
use serde_json::{Value, json};
use test_support::{FaultProxy, Mode};

use super::{MS, S, chat, events, nothing_is_left, read, usage_rows};
use crate::support::{Persona, TestApp, eventually};

async fn sim() -> Sim {
    Sim::start(SimConfig::instant()).await
}

fn url(sim: &Sim) -> String {
    format!("{}/v1", sim.url())
}

fn of_model(model: &str) -> Value {
    json!({"model": model, "stream": true, "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]})
}

/// The engines in the usage rows, oldest first.
async fn engines_of(app: &TestApp) -> Vec<String> {
    assert!(app.state.ai.flush_usage().await);
    let query = sqlx::query_scalar("select engine from usage_event order by id");
    query.fetch_all(app.database.pool()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_before_the_first_event_gives_one_clean_stream() {
    let second = sim().await;
    let app = TestApp::with(&[("ENGINES", &format!("second={}", url(&second)))]).await;
    let user = app.user().await;
    let text = |stream: &str| -> String {
        let chunks = events(stream).into_iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
        chunks.filter_map(|c| c["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
    };
    let expected = text(&read(&user, "/v1/chat/completions", chat("Hello!")).await);
    for fault in ["close-before-headers", "reset-before-headers", "status:502", "status:503", "refuse:60000"]
    {
        let before = second.stats().requests_total;
        app.engine.set_defaults(&format!("fault={fault}"));
        let stream = read(&user, "/v1/chat/completions", chat("Hello!")).await;
        assert_eq!(text(&stream), expected, "{fault}");
        assert_eq!(stream.matches("[DONE]").count(), 1, "{fault}: {stream}");
        assert!(!stream.contains("error"), "{fault}: {stream}");
        assert_eq!(second.stats().requests_total, before + 1, "{fault}: asked once");
        app.engine.clear_defaults();
    }
    let rows = usage_rows(&app).await;
    assert!(rows.iter().all(|(outcome, ..)| outcome == "ok"), "{rows:?}");
    assert_eq!(engines_of(&app).await, ["default", "second", "second", "second", "second", "second"]);
    nothing_is_left(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_first_event_nothing_is_asked_again() {
    let second = sim().await;
    let app = TestApp::with(&[("ENGINES", &format!("second={}", url(&second)))]).await;
    let user = app.user().await;
    let stream = read(&user, "/v1/chat/completions", chat("[[sim fault=reset:5]]")).await;
    assert_eq!(super::last_error(&stream)["code"], "engine_connection_lost");
    assert_eq!(second.stats().requests_total, 0);
    assert_eq!(engines_of(&app).await, ["default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_goes_to_another_engine_only_where_there_is_one() {
    let alone = TestApp::start().await;
    let user = alone.user().await;
    alone.engine.set_defaults("fault=status:429");
    user.post("/v1/chat/completions", chat("x")).await.expect(429);
    assert_eq!(alone.engine.stats().requests_total, 1, "the engine said that it has too much to do");

    let second = sim().await;
    let app = TestApp::with(&[("ENGINES", &format!("second={}", url(&second)))]).await;
    let user = app.user().await;
    app.engine.set_defaults("fault=status:429");
    read(&user, "/v1/chat/completions", chat("x")).await;
    assert_eq!((app.engine.stats().requests_total, second.stats().requests_total), (1, 1));
    second.set_defaults("fault=status:429");
    user.post("/v1/chat/completions", chat("x")).await.expect(429);
    assert_eq!((app.engine.stats().requests_total, second.stats().requests_total), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_refusals_stay_with_the_engine_that_made_them() {
    let second = sim().await;
    let app = TestApp::with(&[("ENGINES", &format!("second={}", url(&second)))]).await;
    let user = app.user().await;
    for (fault, status) in [("status:400", 400), ("status:401", 502), ("status:500", 502), ("html", 502)] {
        app.engine.set_defaults(&format!("fault={fault}"));
        user.post("/v1/chat/completions", chat("x")).await.expect(status);
    }
    assert_eq!(second.stats().requests_total, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_engine_has_a_breaker_of_its_own() {
    let second = sim().await;
    let engines = format!("second={}", url(&second));
    let app = TestApp::with(&[("ENGINES", &engines), ("ENGINE_MODELS", "a=default,b=second")]).await;
    let user = app.user().await;
    app.engine.set_defaults("fault=refuse:60000");
    eventually("the breaker opens", S(10), async || {
        let answer = user.post("/v1/chat/completions", of_model("a")).await;
        answer.status == 503 && answer.json()["error"]["code"] == "engine_unavailable"
    })
    .await;
    for _ in 0..3 {
        read(&user, "/v1/chat/completions", of_model("b")).await;
    }
    app.engine.clear_defaults();
    eventually("the engine is found again", S(10), async || {
        user.post("/v1/chat/completions", of_model("a")).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_go_to_their_engines_and_an_unknown_one_is_told_so() {
    let second = sim().await;
    let engines = format!("second={}", url(&second));
    let app =
        TestApp::with(&[("ENGINES", &engines), ("ENGINE_MODELS", "gpt-*=second,sim-small=default")]).await;
    let user = app.user().await;
    for model in ["gpt-4o", "sim-small", "gpt-"] {
        read(&user, "/v1/chat/completions", of_model(model)).await;
    }
    assert_eq!(engines_of(&app).await, ["second", "default", "second"]);
    let asked = app.engine.stats().requests_total + second.stats().requests_total;
    for (route, body) in [
        ("/v1/chat/completions", of_model("llama")),
        ("/v1/embeddings", json!({"model": "llama", "input": "x"})),
        ("/v1/responses", json!({"model": "llama", "input": "x"})),
    ] {
        let error = user.post(route, body).await.expect(404).json()["error"].clone();
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("model_not_found"), &json!("model")),
            "{error}"
        );
        assert!(error["message"].as_str().unwrap().contains("`llama`"), "{error}");
    }
    assert_eq!(
        app.engine.stats().requests_total + second.stats().requests_total,
        asked,
        "no engine was asked"
    );
    assert_eq!(engines_of(&app).await.len(), 3, "and nothing was billed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_models_is_the_union_and_survives_an_engine_that_is_away() {
    let second = sim().await;
    let (proxy, second_url) = FaultProxy::in_front_of(&url(&second)).await;
    let engines = format!("second={second_url}");
    let models = "sim-small=default|second,sim-large=second,elsewhere=second";
    let app = TestApp::with(&[("ENGINES", &engines), ("ENGINE_MODELS", models)]).await;
    let user = app.user().await;
    let listed = async || -> BTreeSet<String> {
        let list = user.get("/v1/models").await.expect(200).json();
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed().await, BTreeSet::from(["sim-small".to_owned(), "sim-large".to_owned()]));
    assert_eq!(user.get("/v1/models/sim-large").await.expect(200).json()["id"], "sim-large");
    let error = user.get("/v1/models/sim-embedding").await.expect(404).json()["error"].clone();
    assert_eq!(error["code"], "model_not_found");
    proxy.set(Mode::Refuse);
    assert_eq!(listed().await, BTreeSet::from(["sim-small".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_report_names_each_engine() {
    let second = sim().await;
    let (proxy, second_url) = FaultProxy::in_front_of(&url(&second)).await;
    let app = TestApp::with(&[("ENGINES", &format!("second={second_url}"))]).await;
    let nobody = app.anonymous();
    let checks = async || {
        let report = nobody.get("/health").await.expect(200).json();
        ["engine", "engine:second"].map(|name| report["checks"][name]["status"] == "ok")
    };
    eventually("both are well", S(10), async || checks().await == [true, true]).await;
    proxy.set(Mode::Refuse);
    eventually("one is not", S(10), async || checks().await == [true, false]).await;
}

/// Sends `count` requests one after the other; the time until each was answered whole, sorted.
async fn times(user: &Persona, model: &str, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        read(user, "/v1/chat/completions", of_model(model)).await;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_among_three_engines_leaves_the_others_as_fast_as_they_were() {
    let (second, third) = (sim().await, sim().await);
    let first = sim().await;
    let (proxy, first_url) = FaultProxy::in_front_of(&url(&first)).await;
    let engines = format!("second={},third={}", url(&second), url(&third));
    let app = TestApp::with(&[
        ("ENGINE_URL", &first_url),
        ("ENGINES", &engines),
        ("ENGINE_MODELS", "a=default,b=second,c=third"),
        ("ENGINE_HEADER_HOLD", "10s"),
    ])
    .await;
    let user = app.user().await;
    let both = async || {
        let (b, c) = tokio::join!(times(&user, "b", 60), times(&user, "c", 60));
        (b[58].max(c[58]), b[30].max(c[30]))
    };
    times(&user, "a", 3).await;
    both().await;
    let (before, _) = both().await;
    proxy.set(Mode::Blackhole);
    let lost: Vec<_> = (0..20).map(|_| user.request(reqwest::Method::POST, "/v1/chat/completions")).collect();
    let lost = join_all(lost.into_iter().map(|request| request.json(&of_model("a")).send()));
    let meanwhile = async {
        eventually("they wait", S(10), async || app.state.ai.open() >= 20).await;
        both().await.0
    };
    let after = tokio::select! {
        _ = lost => panic!("a black hole answered"),
        after = meanwhile => after,
    };
    assert!(after < before * 3 + MS(100), "p98 was {before:?}, and is {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_that_is_preferred_costs_a_few_requests_and_then_none() {
    let (second, first) = (sim().await, sim().await);
    let (proxy, first_url) = FaultProxy::in_front_of(&url(&first)).await;
    let app = TestApp::with(&[
        ("ENGINE_URL", &first_url),
        ("ENGINES", &format!("second={}", url(&second))),
        ("ENGINE_FIRST_TOKEN_TIMEOUT", "1s"),
    ])
    .await;
    let user = app.user().await;
    proxy.set(Mode::Blackhole);
    let lost = join_all((0..5).map(|_| user.post("/v1/chat/completions", of_model("m")))).await;
    assert!(lost.iter().all(|answer| answer.status == 504), "{lost:?}");
    // From here a request waits for a question to the lost engine at most, and only one at a time.
    for _ in 0..20 {
        user.post("/v1/chat/completions", of_model("m")).await.expect(200);
    }
    assert_eq!(second.stats().requests_total, 20);
    proxy.set(Mode::Pass);
    eventually("the preferred engine is asked again", S(15), async || {
        user.post("/v1/chat/completions", of_model("m")).await.expect(200);
        engines_of(&app).await.last().is_some_and(|engine| engine == "default")
    })
    .await;
}

/// Engines that have too much to do must not get twice the load.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_requests_that_fail_only_some_are_asked_again() {
    let second = sim().await;
    let app = TestApp::with(&[
        ("ENGINES", &format!("second={}", url(&second))),
        ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
        ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
    ])
    .await;
    let user = app.user().await;
    app.engine.set_defaults("fault=status:429");
    let mut refused = 0;
    for _ in 0..100 {
        refused += u64::from(user.post("/v1/chat/completions", of_model("m")).await.status == 429);
    }
    // Ten at first, and a tenth of the requests.
    let again = second.stats().requests_total;
    assert!((10..=21).contains(&again), "{again}");
    assert_eq!((again + refused, app.engine.stats().requests_total), (100, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_errors_open_the_breaker_and_clients_that_leave_do_not() {
    let app = TestApp::with(&[("AI_CONCURRENT_STREAMS", "100"), ("ENGINE_RETRIES", "0")]).await;
    let user = app.user().await;
    app.engine.set_defaults("fault=hang-before-headers");
    for n in 1..=20 {
        let request = user.request(reqwest::Method::POST, "/v1/chat/completions").json(&of_model("m"));
        tokio::select! {
            answer = request.send() => panic!("{answer:?}"),
            _ = app.engine.wait_for(S(5), |stats| stats.requests_total == n && stats.requests_open == 1) => {}
        }
        app.engine.wait_for(S(5), |stats| stats.cancelled == n).await;
    }
    app.engine.clear_defaults();
    user.post("/v1/chat/completions", of_model("m")).await.expect(200);
    app.engine.set_defaults("fault=status:500");
    for _ in 0..5 {
        user.post("/v1/chat/completions", of_model("m")).await.expect(502);
    }
    let error = user.post("/v1/chat/completions", of_model("m")).await.expect(503).json()["error"].clone();
    assert_eq!(error["code"], "engine_unavailable");
    assert_eq!(app.engine.stats().requests_total, 26, "it is not asked");
}

/// What stands below /v1/ai/ is one engine's own: no other is asked for it, whatever the model, and also when it fails.
#[tokio::test(flavor = "multi_thread")]
async fn the_passthrough_leads_to_one_engine_or_to_none() {
    let body = json!({"model": "a", "prompt": "x", "stream": true});
    let second = sim().await;
    let engines = format!("second={}", url(&second));
    let vars = |more: Option<&'static str>| {
        let mut vars = vec![("ENGINES", engines.as_str()), ("ENGINE_MODELS", "a=second")];
        vars.extend(more.map(|name| ("ENGINE_PASSTHROUGH", name)));
        vars
    };
    let first = TestApp::with(&vars(None)).await;
    let user = first.user().await;
    user.post("/v1/ai/stream", body.clone()).await.expect(200);
    assert_eq!((first.engine.stats().requests_total, second.stats().requests_total), (1, 0));
    first.engine.set_defaults("fault=status:503");
    user.post("/v1/ai/stream", body.clone()).await.expect(503);
    assert_eq!((first.engine.stats().requests_total, second.stats().requests_total), (3, 0));

    let named = TestApp::with(&vars(Some("second"))).await;
    let user = named.user().await;
    user.post("/v1/ai/stream", body.clone()).await.expect(200);
    assert_eq!((named.engine.stats().requests_total, second.stats().requests_total), (0, 1));

    let off = TestApp::with(&vars(Some("off"))).await;
    let user = off.user().await;
    user.post("/v1/ai/stream", body.clone()).await.expect(404);
    off.anonymous().post("/v1/ai/stream", body).await.expect(401);
    assert_eq!((off.engine.stats().requests_total, second.stats().requests_total), (0, 1));
}
