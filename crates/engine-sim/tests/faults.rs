//! Every fault does on the wire what its name says.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    End, SECOND, chat, chunks, client, content, events, http_chunks, post, raw, split_head, stream,
};
use engine_sim::{Fault, Sim, SimConfig};
use serde_json::Value;
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";

async fn instant() -> Sim {
    Sim::start(SimConfig::instant()).await
}

/// The HTTP chunks of a stream with the fault, what came after the last whole one, and how the connection ended.
async fn broken(settings: &str) -> (Vec<Vec<u8>>, Vec<u8>, End) {
    let sim = instant().await;
    let (bytes, end) = raw(&sim, &chat(settings)).await;
    let (head, body) = split_head(&bytes);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let (chunks, rest) = http_chunks(body);
    (chunks, rest, end)
}

/// The body of a stream that ends well.
async fn body(settings: &str) -> Vec<u8> {
    let sim = instant().await;
    post(&sim, CHAT, &chat(settings)).await.bytes().await.unwrap().to_vec()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn hang_before_headers_sends_nothing() {
    let sim = instant().await;
    assert_eq!(raw(&sim, &chat("fault=hang-before-headers")).await, (vec![], End::Open));
}

#[tokio::test]
async fn close_and_reset_before_headers_end_the_connection_without_an_answer() {
    let sim = instant().await;
    assert_eq!(raw(&sim, &chat("fault=close-before-headers")).await, (vec![], End::Closed));
    assert_eq!(raw(&sim, &chat("fault=reset-before-headers")).await, (vec![], End::Reset));
    sim.wait_for(5 * SECOND, |stats| stats.faulted == 2 && stats.connections_open == 0).await;
}

#[tokio::test]
async fn slow_headers_take_their_time_and_then_all_is_well() {
    let sim = instant().await;
    let begin = Instant::now();
    let text = stream(&sim, CHAT, &chat("fault=slow-headers:3 tokens=5")).await;
    assert!(begin.elapsed() > Duration::from_millis(300), "{:?}", begin.elapsed());
    assert_eq!(content(&chunks(&text)), "This is a simulation:");
    // The next answer on the same connection is not slow.
    let begin = Instant::now();
    stream(&sim, CHAT, &chat("tokens=5")).await;
    assert!(begin.elapsed() < Duration::from_millis(300));
}

#[tokio::test]
async fn hang_after_headers_sends_only_a_head() {
    let (chunks, rest, end) = broken("fault=hang-after-headers").await;
    assert_eq!((chunks.len(), rest.len(), end), (0, 0, End::Open));
}

#[tokio::test]
async fn stall_stops_after_so_many_tokens_and_stays_open() {
    let (chunks, _, end) = broken("fault=stall:4").await;
    assert_eq!((chunks.len(), end), (1 + 4, End::Open));
    assert!(text(&chunks[4]).contains("\" simulation\""));
}

#[tokio::test]
async fn reset_delivers_its_chunks_and_then_resets() {
    let (chunks, rest, end) = broken("fault=reset:5").await;
    assert_eq!((chunks.len(), rest.len(), end), (5, 0, End::Reset));
}

#[tokio::test]
async fn half_chunk_announces_twice_what_it_sends_and_closes() {
    let (chunks, rest, end) = broken("fault=half-chunk:2").await;
    let (size, half) =
        text(&rest).split_once("\r\n").map(|(size, half)| (size.to_owned(), half.to_owned())).unwrap();
    assert_eq!((chunks.len(), end), (2, End::Closed));
    assert_eq!(usize::from_str_radix(&size, 16).unwrap() / 2, half.len());
}

#[tokio::test]
async fn cuts_reach_answers_in_one_piece_too() {
    for (fault, expected) in
        [("reset:1", End::Reset), ("half-chunk:1", End::Closed), ("hang-after-headers", End::Open)]
    {
        let sim = instant().await;
        let mut request = chat(&format!("fault={fault}"));
        request["stream"] = false.into();
        let (bytes, end) = raw(&sim, &request).await;
        let (head, body) = split_head(&bytes);
        assert!(head.contains("application/json"), "{head}");
        assert_eq!(end, expected, "{fault}");
        assert!(http_chunks(body).0.len() <= 1);
    }
}

#[tokio::test]
async fn garbage_is_no_event_stream_and_html_is_a_page() {
    let garbage = body("fault=garbage:1000").await;
    assert_eq!(garbage.len(), 1000);
    assert!(std::str::from_utf8(&garbage).is_err());
    let sim = instant().await;
    let html = post(&sim, CHAT, &chat("fault=html")).await;
    assert_eq!(
        (html.status().as_u16(), &html.headers()["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    assert!(html.text().await.unwrap().starts_with("<!doctype html>"));
}

#[tokio::test]
async fn a_status_is_an_openai_error_with_retry_after_where_it_belongs() {
    let sim = instant().await;
    for (status, kind, retry) in [
        (429, "rate_limit_error", true),
        (500, "server_error", false),
        (502, "server_error", false),
        (503, "server_error", true),
    ] {
        let response = post(&sim, CHAT, &chat(&format!("fault=status:{status}"))).await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers().contains_key("retry-after"), retry);
        assert_eq!(response.headers()["x-engine-sim"], "simulation");
        assert_eq!(response.json::<Value>().await.unwrap()["error"]["type"], kind);
    }
    let begin = Instant::now();
    post(&sim, CHAT, &chat("fault=status:500 first-token-ms=80")).await;
    assert!(begin.elapsed() >= Duration::from_millis(80), "an error may come late");
}

#[tokio::test]
async fn redirect_points_where_it_is_told() {
    let sim = instant().await;
    let response = post(&sim, CHAT, &chat("fault=redirect:http://169.254.169.254/latest")).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (307, &"http://169.254.169.254/latest".parse().unwrap())
    );
}

#[tokio::test]
async fn the_closing_event_can_be_missing_or_leave_the_body_open() {
    let no_done = text(&body("fault=no-done tokens=5").await);
    assert!(no_done.contains("\"finish_reason\":\"stop\"") && !no_done.contains("[DONE]"));
    let (chunks, _, end) = broken("fault=done-open tokens=5").await;
    assert_eq!((text(chunks.last().unwrap()), end), ("data: [DONE]\n\n".to_owned(), End::Open));
    let sim = instant().await;
    let request = serde_json::json!({"stream": true, "input": "hi [[sim fault=no-done]]"});
    assert!(!stream(&sim, "/v1/responses", &request).await.contains("response.completed"));
    let request = serde_json::json!({"prompt": "hi [[sim fault=no-done]]"});
    assert!(!stream(&sim, "/v1/ai/stream", &request).await.contains("event: done"));
}

#[tokio::test]
async fn comments_go_on_for_ever() {
    let sim = instant().await;
    let mut response = post(&sim, CHAT, &chat("fault=comments:5")).await;
    for _ in 0..20 {
        let chunk = response.chunk().await.unwrap().unwrap();
        assert!(text(&chunk).split_terminator("\n\n").all(|comment| comment.starts_with(':')), "{chunk:?}");
    }
    drop(response);
    sim.wait_for(5 * SECOND, |stats| stats.cancelled == 1).await;
}

#[tokio::test]
async fn long_lines_are_one_event_and_the_stream_goes_on() {
    let long = text(&body("fault=long-line:300000 tokens=5").await);
    assert_eq!(long.lines().map(str::len).filter(|length| *length > 300_000).count(), 1);
    assert_eq!(content(&chunks(&long)), "This is a simulation:");
}

#[tokio::test]
async fn no_newline_is_as_long_as_it_says() {
    let endless = body("fault=no-newline:1000000").await;
    assert_eq!(endless.len(), "data: ".len() + 1_000_000);
    assert!(!endless.contains(&b'\n'));
}

#[tokio::test]
async fn invalid_utf8_comes_between_valid_events() {
    let bytes = body("fault=invalid-utf8 tokens=5").await;
    assert!(std::str::from_utf8(&bytes).is_err());
    assert!(bytes.starts_with(b"data: {") && bytes.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test]
async fn gzip_is_gzip_of_the_same_stream_event_by_event() {
    let sim = instant().await;
    let response = post(&sim, CHAT, &chat("fault=gzip tokens=5")).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let packed = response.bytes().await.unwrap();
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut unpacked).unwrap();
    assert_eq!(content(&chunks(&unpacked)), "This is a simulation:");
}

#[tokio::test]
async fn errors_in_the_stream_end_it_without_the_closing_event() {
    let in_band = text(&body("fault=in-band-error:2").await);
    let last = events(&in_band).pop().unwrap();
    assert_eq!(last.0, "");
    assert_eq!(serde_json::from_str::<Value>(&last.1).unwrap()["error"]["type"], "server_error");
    assert_eq!(events(&in_band).len(), 1 + 2 + 1);
    let named = events(&text(&body("fault=named-error:2").await));
    assert_eq!((named.len(), named[3].0.as_str()), (1 + 2 + 1, "error"));
    let sim = instant().await;
    let request = serde_json::json!({"stream": true, "input": "hi [[sim fault=in-band-error:2]]"});
    let responses = events(&stream(&sim, "/v1/responses", &request).await);
    let (name, data) = responses.last().unwrap();
    assert_eq!(
        (name.as_str(), &serde_json::from_str::<Value>(data).unwrap()["code"]),
        ("error", &"server_error".into())
    );
}

#[tokio::test]
async fn line_ends_and_byte_order_mark_change_nothing_else() {
    // The marker is part of the prompt, so only the control route leaves the text as it is.
    let sim = instant().await;
    let plain = stream(&sim, CHAT, &chat("tokens=20 unicode=true")).await;
    for (fault, back) in [
        ("crlf", (|text: String| text.replace("\r\n", "\n")) as fn(String) -> String),
        ("cr", |text| text.replace('\r', "\n")),
        ("bom", |text| text.strip_prefix('\u{feff}').unwrap().to_owned()),
    ] {
        sim.set_defaults(&format!("fault={fault}"));
        let bytes = post(&sim, CHAT, &chat("tokens=20 unicode=true")).await.bytes().await.unwrap();
        let changed = text(&bytes);
        assert_ne!(changed, plain);
        assert_eq!(changed.contains('\n'), fault != "cr");
        assert_eq!(back(changed), plain, "{fault}");
    }
}

#[tokio::test]
async fn split_cuts_events_and_characters_anywhere_and_keeps_every_byte() {
    let sim = instant().await;
    let request = chat("tokens=20 unicode=true");
    let plain = stream(&sim, CHAT, &request).await.into_bytes();
    for size in [1, 2, 3, 7, 1000] {
        sim.set_defaults(&format!("fault=split:{size}"));
        let (bytes, _) = raw(&sim, &request).await;
        let (chunks, _) = http_chunks(split_head(&bytes).1);
        let (last, pieces) = chunks[..chunks.len() - 1].split_last().unwrap();
        assert!(pieces.iter().all(|piece| piece.len() == size) && last.len() <= size);
        assert_eq!(chunks.concat(), plain);
        assert_eq!(chunks.iter().any(|piece| std::str::from_utf8(piece).is_err()), size < 1000);
    }
}

#[tokio::test]
async fn empty_events_come_between_the_real_ones() {
    let text = text(&body("fault=empty-events tokens=8").await);
    for empty in ["data:", "event: ping", ":", "id: 7", "retry: 1000"] {
        assert!(text.contains(&format!("\n\n{empty}\n\n")), "{empty}: {text}");
    }
}

#[tokio::test]
async fn refuse_closes_the_listener_and_idle_connections_and_comes_back() {
    let sim = instant().await;
    let client = client();
    let health = || client.get(format!("{}/health", sim.url())).send();
    assert_eq!(health().await.unwrap().status(), 200);
    let refuse = |settings| client.post(format!("{}/control", sim.url())).body(settings).send();
    assert_eq!(refuse(r#"{"fault": "refuse:150"}"#).await.unwrap().status(), 200);
    sim.wait_for(5 * SECOND, |stats| stats.connections_open == 0).await;
    assert!(health().await.unwrap_err().is_connect());
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(health().await.unwrap().status(), 200);
    sim.set_defaults("fault=refuse:600000");
    sim.wait_for(5 * SECOND, |stats| stats.connections_open == 0).await;
    assert!(health().await.unwrap_err().is_connect());
    sim.clear_defaults();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(health().await.unwrap().status(), 200);
    assert_eq!(post(&sim, CHAT, &chat("fault=refuse")).await.status(), 400);
}

#[tokio::test]
async fn every_known_fault_leaves_the_engine_alive() {
    let sim = Arc::new(instant().await);
    let mut requests = JoinSet::new();
    for fault in
        Fault::known().filter(|fault| !fault.starts_with("refuse") && !fault.starts_with("no-newline"))
    {
        for stream in [true, false] {
            let mut request = chat(&format!("fault={fault} tokens=5"));
            request["stream"] = stream.into();
            let sim = sim.clone();
            requests.spawn(async move { raw(&sim, &request).await });
        }
    }
    requests.join_all().await;
    assert_eq!(stream(&sim, CHAT, &chat("tokens=5")).await.matches("data:").count(), 1 + 5 + 1 + 1);
    let stats = sim.wait_for(5 * SECOND, |stats| stats.requests_open == 0).await;
    assert_eq!(stats.completed + stats.cancelled + stats.faulted, stats.requests_total);
}
