//! The engine's side of abuse: it is away, it must be left alone at once, and what it says must arrive at once.

use std::time::{Duration, Instant};

use engine_sim::{Sim, SimConfig};
use futures_util::future::join_all;
use reqwest::Method;
use test_support::{FaultProxy, Mode};

use crate::{
    ai::{MS, S, STREAMING, chat, nothing_is_left, open, scripted::Scripted, streaming, whole},
    support::{TestApp, in_full, within},
};

const CHAT: &str = "/v1/chat/completions";
/// Of a piece of an answer.
const PIECE: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";

fn percentile(times: &mut [Duration], per_cent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * per_cent / 100).min(times.len() - 1)]
}

/// Case E3: the engine is away for a minute; with the other tests for eight seconds.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_down_under_load_is_refused_at_once_and_found_within_ten_seconds() {
    let first = Sim::start(SimConfig::instant()).await;
    let (proxy, first_url) = FaultProxy::in_front_of(&format!("{}/v1", first.url())).await;
    let app = TestApp::with(&[
        ("ENGINE_URL", &first_url),
        ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
        ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
    ])
    .await;
    let user = app.user().await;
    proxy.set(Mode::Refuse);
    let until = Instant::now() + if in_full() { S(60) } else { S(8) };
    let clients = join_all((0..4).map(|_| async {
        let mut refused = Vec::new();
        while Instant::now() < until {
            let started = Instant::now();
            let answer = user.post("/v1/chat/completions", chat("[[sim tokens=3]]")).await;
            assert!([502, 503].contains(&answer.status), "{}", answer.text);
            if answer.status == 503 {
                assert_eq!(answer.header("retry-after"), "1");
                refused.push(started.elapsed());
            }
            tokio::time::sleep(MS(50)).await;
        }
        refused
    }));
    let others = async {
        let mut times = Vec::new();
        while Instant::now() < until {
            let started = Instant::now();
            user.get("/v1/me").await.expect(200);
            times.push(started.elapsed());
            tokio::time::sleep(MS(50)).await;
        }
        times.sort_unstable();
        times
    };
    let (refused, others) = tokio::join!(clients, others);
    let mut refused = refused.concat();
    refused.sort_unstable();
    let middle = |times: &[Duration]| times[times.len() / 2];
    assert!(refused.len() > 20, "{refused:?}");
    proxy.set(Mode::Pass);
    let healed = Instant::now();
    within("the engine is found again", S(10), async || {
        user.post("/v1/chat/completions", chat("[[sim tokens=3]]")).await.status == 200
    })
    .await;
    println!(
        "{} refused, p50 {:?}; /v1/me p50 {:?}; found again after {:?}",
        refused.len(),
        middle(&refused),
        middle(&others),
        healed.elapsed()
    );
    let (soon, served) = if in_full() { (MS(50), MS(50)) } else { (MS(250), MS(500)) };
    assert!(middle(&refused) <= soon, "{:?}", middle(&refused));
    assert!(middle(&others) <= served, "{:?}", middle(&others));
}

/// Case E4: an event is on its way to the client when it is here, and not when more has come.
#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_forwarded_when_it_comes() {
    let events = if in_full() { 1_000 } else { 100 };
    let mut pieces = vec![PIECE.to_vec(); events];
    pieces.push(
        b"data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n".to_vec(),
    );
    let engine = Scripted::start(pieces, MS(10)).await;
    let app = TestApp::with(&[("ENGINE_URL", &engine.url())]).await;
    let user = app.user().await;
    let mut response = open(&user, CHAT, chat("x")).await;
    let (mut arrived, mut line_ends) = (Vec::new(), 0);
    while let Some(chunk) = response.chunk().await.unwrap() {
        let now = Instant::now();
        line_ends += String::from_utf8_lossy(&chunk).matches('\n').count();
        // Two for each event.
        arrived.resize(line_ends / 2, now);
    }
    let sent = engine.sent();
    assert_eq!((sent.len(), arrived.len()), (events + 1, events + 2), "the last piece is two events");
    let pairs = sent.iter().zip(&arrived);
    let mut delays: Vec<_> = pairs.map(|(sent, arrived)| arrived.saturating_duration_since(*sent)).collect();
    let (middle, longest) = (percentile(&mut delays, 50), percentile(&mut delays, 100));
    println!("{events} events: p50 {middle:?}, the longest {longest:?}");
    let (bound, most) = if in_full() { (MS(10), MS(50)) } else { (MS(100), MS(500)) };
    assert!(middle < bound && longest <= most, "p50 {middle:?}, the longest {longest:?}");
}

/// Case E4: what the proxy adds to the time until the first event.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_comes_hardly_later_than_from_the_engine_itself() {
    let engine = Scripted::start(vec![PIECE.to_vec(), b"data: [DONE]\n\n".to_vec()], MS(5)).await;
    let app = TestApp::with(&[
        ("ENGINE_URL", &engine.url()),
        ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
        ("RATE_LIMIT_AI_TOKENS", "100000000/1m"),
    ])
    .await;
    let user = app.user().await;
    let direct = format!("{}/chat/completions", engine.url());
    let client = reqwest::Client::new();
    let (mut through, mut straight) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        for (request, times) in
            [(user.request(Method::POST, CHAT), &mut through), (client.post(&direct), &mut straight)]
        {
            let started = Instant::now();
            let mut response = request.json(&chat("x")).send().await.unwrap();
            assert!(response.chunk().await.unwrap().unwrap().starts_with(b"data: "));
            times.push(started.elapsed());
            response.bytes().await.unwrap();
        }
    }
    let (through, straight) = (percentile(&mut through, 50), percentile(&mut straight, 50));
    println!("until the first event: p50 {through:?}, without the proxy {straight:?}");
    let bound = if in_full() { MS(10) } else { MS(200) };
    assert!(through.saturating_sub(straight) < bound, "{through:?}, without the proxy {straight:?}");
}

/// Case E2: from the client's leaving to the engine's noticing.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_left_alone_within_250_ms_of_its_client_leaving() {
    let app = TestApp::with(&[("ENGINE_HEADER_HOLD", "100ms")]).await;
    let user = app.user().await;
    let rounds = if in_full() { 20 } else { 2 };
    let mut times = Vec::new();
    for _ in 0..rounds {
        for route in STREAMING {
            for (body, has_head) in [
                (whole(route, "[[sim fault=hang-before-headers]]"), false),
                (whole(route, "[[sim fault=hang-after-headers]]"), false),
                (streaming(route, "[[sim fault=hang-before-headers]]"), true),
                (streaming(route, "[[sim fault=stall:5]]"), true),
            ] {
                let before = app.engine.stats().cancelled;
                let asked = user.request(Method::POST, route).json(&body).send();
                let left = if has_head {
                    let response = asked.await.unwrap();
                    app.engine.wait_for(S(5), |stats| stats.requests_open == 1).await;
                    drop(response);
                    Instant::now()
                } else {
                    tokio::select! {
                        answer = asked => panic!("{route}: {answer:?}"),
                        _ = app.engine.wait_for(S(5), |stats| stats.requests_open == 1) => Instant::now(),
                    }
                };
                let stats = app.engine.wait_for(S(5), |stats| stats.cancelled == before + 1).await;
                let noticed = stats.cancellations.back().unwrap().at;
                times.push(noticed.saturating_duration_since(left));
                nothing_is_left(&app).await;
            }
        }
    }
    let (middle, longest) = (percentile(&mut times, 50), percentile(&mut times, 100));
    println!("{} clients left: p50 {middle:?}, the longest {longest:?}", times.len());
    assert!(longest <= if in_full() { MS(250) } else { S(1) }, "{longest:?}");
}
