//! Clients that leave, clients that do not read, and many at once.

mod common;

use std::time::{Duration, Instant};

use common::{SECOND, chat, client, post, stream};
use engine_sim::{Phase, Sim, SimConfig};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";
/// It takes well under a millisecond; the bound is for a test machine that does other things.
const AT_ONCE: Duration = SECOND;

#[tokio::test]
async fn a_client_that_leaves_is_noticed_at_once_wherever_the_answer_is() {
    let sim = Sim::start(SimConfig::instant()).await;
    for (settings, streams, phase) in [
        ("fault=hang-before-headers", true, Phase::BeforeHeaders),
        ("fault=hang-before-headers", false, Phase::BeforeHeaders),
        ("first-token-ms=60000", false, Phase::BeforeHeaders),
        ("first-token-ms=60000", true, Phase::Streaming),
        ("fault=hang-after-headers", true, Phase::Streaming),
        ("fault=stall:3", true, Phase::Streaming),
        ("tokens=100000 token-interval-ms=5", true, Phase::Streaming),
        ("tokens=100000000", true, Phase::Streaming),
        ("fault=done-open tokens=3", true, Phase::Streaming),
    ] {
        let before = sim.stats().cancelled;
        let mut body = chat(settings);
        body["stream"] = streams.into();
        let request = client().post(format!("{}{CHAT}", sim.url())).json(&body).send();
        // Whatever has come by then: the response, or nothing yet.
        let response = tokio::time::timeout(Duration::from_millis(50), request).await;
        sim.wait_for(5 * SECOND, |stats| stats.requests_open == 1).await;
        let left = Instant::now();
        drop(response);
        let stats = sim.wait_for(5 * SECOND, |stats| stats.cancelled == before + 1).await;
        let last = stats.cancellations.back().unwrap();
        assert!(last.at.saturating_duration_since(left) < AT_ONCE, "{settings}: {last:?}");
        assert_eq!((last.phase, last.path.as_str()), (phase, CHAT), "{settings}");
        sim.wait_for(5 * SECOND, |stats| stats.requests_open == 0 && stats.connections_open == 0).await;
    }
}

#[tokio::test]
async fn five_hundred_clients_that_leave_together_are_all_counted() {
    let sim = Sim::start(SimConfig::instant()).await;
    let client = client();
    let mut clients = JoinSet::new();
    for _ in 0..500 {
        let request =
            client.post(format!("{}{CHAT}", sim.url())).json(&chat("fault=hang-before-headers")).send();
        clients.spawn(async { drop(request.await) });
    }
    sim.wait_for(10 * SECOND, |stats| stats.requests_open == 500).await;
    clients.shutdown().await;
    let stats = sim.wait_for(10 * SECOND, |stats| stats.connections_open == 0).await;
    assert_eq!((stats.cancelled, stats.cancellations.len(), stats.requests_open), (500, 500, 0));
}

#[tokio::test]
async fn tokens_keep_their_pace_even_above_the_timer_resolution() {
    let sim = Sim::start(SimConfig::default()).await;
    for (settings, at_least) in [
        ("first-token-ms=100 token-interval-ms=0 tokens=5", 100),
        ("first-token-ms=0 token-interval-ms=10 tokens=21", 200),
        ("first-token-ms=0 token-interval-ms=0.1 tokens=2001", 200),
    ] {
        let begin = Instant::now();
        stream(&sim, CHAT, &chat(settings)).await;
        let took = begin.elapsed();
        assert!((at_least..at_least + 1500).contains(&took.as_millis()), "{settings}: {took:?}");
    }
    let mut whole = chat("first-token-ms=50 token-interval-ms=10 tokens=6");
    whole["stream"] = false.into();
    let begin = Instant::now();
    post(&sim, CHAT, &whole).await;
    assert!(begin.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_stream() {
    let sim = Sim::start(SimConfig::instant()).await;
    let response = post(&sim, CHAT, &chat("tokens=200 chunk-bytes=1048576")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(response);
    let stats = sim.wait_for(5 * SECOND, |stats| stats.cancelled == 1).await;
    assert!(stats.cancellations[0].chunks < 50, "the rest waited: {:?}", stats.cancellations);
}

#[tokio::test]
async fn a_thousand_streams_run_side_by_side() {
    let sim = Sim::start(SimConfig::instant()).await;
    let client = client();
    let mut streams = JoinSet::new();
    for _ in 0..1000 {
        let request = client.post(format!("{}{CHAT}", sim.url()));
        let request = request.json(&chat("first-token-ms=500 token-interval-ms=20 tokens=20")).send();
        streams.spawn(async { request.await.unwrap().text().await.unwrap().ends_with("data: [DONE]\n\n") });
    }
    let results = streams.join_all().await;
    assert!(results.len() == 1000 && results.iter().all(|whole| *whole));
    assert_eq!(sim.stats().completed, 1000);
}

#[tokio::test]
async fn dropping_the_engine_ends_its_streams() {
    let sim = Sim::start(SimConfig::instant()).await;
    let mut response = post(&sim, CHAT, &chat("fault=stall:3")).await;
    response.chunk().await.unwrap();
    let address = sim.addr();
    drop(sim);
    while let Ok(Some(_)) = response.chunk().await {}
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
