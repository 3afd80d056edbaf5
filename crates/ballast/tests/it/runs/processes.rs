//! Real processes: two replicas of the API, and workers that die.

use nix::sys::signal::Signal;

use super::{S, names, open, rest, some, start, text, until};
use crate::support::{Deployment, free_port, ready};

/// Cases A13 and W1, for runs: the worker is killed in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_the_middle_of_a_run_is_replaced_and_the_stream_says_so() {
    let stack = Deployment::new().await;
    let [one, two, first, second] = [free_port(), free_port(), free_port(), free_port()];
    let quick = [("WORKER_LEASE", "2s"), ("WORKER_POLL_INTERVAL", "200ms")];
    let mut apis = [stack.start("api", one, &[]), stack.start("api", two, &[])];
    let worker = stack.start("worker", first, &quick);
    for port in [one, two, first] {
        ready(port).await;
    }
    let client = reqwest::Client::new();
    let [here, there] = [one, two].map(|port| format!("http://127.0.0.1:{port}"));
    let user = stack.user_at(one).await;

    let path = start(&user, "[[sim tokens=60 token-interval-ms=100]]").await;
    let made = user.post(&format!("{path}/ticket"), serde_json::Value::Null).await.expect(201).json();
    let (ticket, url) =
        (made["ticket"].as_str().unwrap().to_owned(), made["url"].as_str().unwrap().to_owned());
    let mut viewer = client.get(format!("{here}{url}")).send().await.unwrap();
    let before = some(&mut viewer, 5).await;
    worker.signal(Signal::SIGKILL);
    let replacement = stack.start("worker", second, &quick);
    ready(second).await;
    // One viewer stays, one comes back to the other replica with what it has seen.
    let back = client.get(format!("{there}{url}")).header("last-event-id", &before.last().unwrap().id);
    let (stayed, came_back) = tokio::join!(rest(viewer), rest_of(back));
    let stayed = [before.clone(), stayed].concat();
    assert_eq!(names(&stayed), ["queued", "started", "", "restarted", "", "end"]);
    assert_eq!([before, came_back].concat(), stayed, "both saw the same");
    assert_eq!(stayed.last().unwrap().json()["state"], "completed");
    let seen = stack.engine.stats();
    let cut = seen.cancellations.iter().filter(|request| request.path.ends_with("/chat/completions"));
    assert_eq!(cut.count(), 1, "the engine's first request ended with its worker: {seen:?}");
    assert!(text(&stayed).len() > 100, "{}", text(&stayed));
    let rows: Vec<(String,)> =
        sqlx::query_as("select outcome from usage_event").fetch_all(stack.database.pool()).await.unwrap();
    assert_eq!(rows, [("ok".to_owned(),)], "once");

    // A deploy of the API does not touch a run; a deploy of the worker makes it begin again.
    let second_run = start(&user, "[[sim tokens=60 token-interval-ms=100]]").await;
    until(&user, &second_run, "running").await;
    for api in &mut apis {
        api.signal(Signal::SIGTERM);
    }
    for api in &mut apis {
        assert!(api.wait(S(20)).await.0.success(), "{}", api.output());
    }
    let api = stack.start("api", one, &[]);
    ready(one).await;
    let events = rest(open(&user, &second_run, None).await).await;
    assert_eq!(names(&events), ["queued", "started", "", "end"]);

    for process in [&apis[0], &apis[1], &worker, &replacement, &api] {
        let output = process.output();
        assert!(!output.contains(&ticket) && !output.contains("ticket="), "a ticket is in the log");
        assert!(output.contains("\"level\""), "there is a log");
    }
}

/// A deploy of the worker: what does not end within its time is made again by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_replaced_in_the_middle_of_a_run_hands_it_to_the_next_one() {
    let stack = Deployment::new().await;
    let [port, first, second] = [free_port(), free_port(), free_port()];
    let quick = [("WORKER_POLL_INTERVAL", "200ms"), ("SHUTDOWN_BUDGET", "3s")];
    let _api = stack.start("api", port, &[]);
    let mut worker = stack.start("worker", first, &quick);
    ready(port).await;
    ready(first).await;
    let user = stack.user_at(port).await;

    let path = start(&user, "[[sim tokens=80 token-interval-ms=100]]").await;
    let mut viewer = open(&user, &path, None).await;
    let before = some(&mut viewer, 5).await;
    worker.signal(Signal::SIGTERM);
    let next = stack.start("worker", second, &quick);
    let (status, took) = worker.wait(S(20)).await;
    assert!(status.success(), "{}", worker.output());
    assert!(took < S(10), "{took:?}");
    ready(second).await;
    let all = [before, rest(viewer).await].concat();
    assert_eq!(names(&all), ["queued", "started", "", "restarted", "", "end"], "{}", next.output());
    assert_eq!(all.last().unwrap().json()["state"], "completed");
    let rows: Vec<(String, i64)> = sqlx::query_as("select outcome, completion_tokens from usage_event")
        .fetch_all(stack.database.pool())
        .await
        .unwrap();
    assert_eq!(rows, [("ok".to_owned(), 80)], "once");
}

async fn rest_of(request: reqwest::RequestBuilder) -> Vec<super::Event> {
    rest(request.send().await.unwrap()).await
}
