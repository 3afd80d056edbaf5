//! The real binary's end.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Deployment, Process, eventually, free_port, in_full, ready};

const S: fn(u64) -> Duration = Duration::from_secs;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_role_stops_at_once_with_exit_code_0_and_logs_only_json() {
    let deployment = Deployment::new().await;
    for role in ["api", "worker", "all"] {
        let port = free_port();
        let mut process = deployment.start(role, port, &[]);
        ready(port).await;
        process.signal(Signal::SIGTERM);
        let (status, took) = process.wait(S(20)).await;
        assert_eq!(status.code(), Some(0), "{role}: {}", process.output());
        assert!(took < S(5), "well within its budget, {role}: {took:?}");
        let output = process.output();
        for line in output.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            for field in ["timestamp", "level", "message", "service", "env"] {
                assert!(line[field].is_string(), "{line}");
            }
        }
        assert!(output.contains("shutting down") && output.contains("\"stopped\""), "{output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_finished_before_the_worker_ends() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let mut worker = deployment.start("worker", port, &[]);
    ready(port).await;
    let mut c = deployment.database.pool().acquire().await.unwrap();
    let job = jobs::enqueue_raw(
        &mut c,
        "echo",
        json!({ "message": "x", "sleep_ms": 1_500 }),
        jobs::EnqueueOptions::default(),
    )
    .await
    .unwrap();
    let state = async |c: &mut sqlx::PgConnection| jobs::find(c, job.id()).await.unwrap().unwrap();
    eventually("the job runs", S(5), async || state(&mut c).await.state == jobs::JobState::Running).await;
    worker.signal(Signal::SIGTERM);
    let (status, _) = worker.wait(S(20)).await;
    assert_eq!(status.code(), Some(0), "{}", worker.output());
    let view = state(&mut c).await;
    assert_eq!((view.state, view.attempt), (jobs::JobState::Completed, 1), "{view:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_outlives_the_grace_is_handed_back_without_using_an_attempt() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let mut worker = deployment.start("worker", port, &[("SHUTDOWN_BUDGET", "3s")]);
    ready(port).await;
    let mut c = deployment.database.pool().acquire().await.unwrap();
    let job = jobs::enqueue_raw(
        &mut c,
        "echo",
        json!({ "message": "x", "sleep_ms": 60_000 }),
        jobs::EnqueueOptions::default(),
    )
    .await
    .unwrap();
    let state = async |c: &mut sqlx::PgConnection| jobs::find(c, job.id()).await.unwrap().unwrap();
    eventually("the job runs", S(5), async || state(&mut c).await.state == jobs::JobState::Running).await;
    worker.signal(Signal::SIGTERM);
    let (status, took) = worker.wait(S(20)).await;
    assert_eq!(status.code(), Some(0), "{}", worker.output());
    assert!(took < S(8), "{took:?}");
    let view = state(&mut c).await;
    assert_eq!((view.state, view.attempt), (jobs::JobState::Ready, 0), "{view:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_loses_no_job() {
    let deployment = Deployment::new().await;
    let (one, two) = (free_port(), free_port());
    let lease = [("WORKER_LEASE", "2s")];
    let mut first = deployment.start("worker", one, &lease);
    ready(one).await;
    let mut c = deployment.database.pool().acquire().await.unwrap();
    let job = jobs::enqueue_raw(
        &mut c,
        "echo",
        json!({ "message": "x", "sleep_ms": 2_000 }),
        jobs::EnqueueOptions::default(),
    )
    .await
    .unwrap();
    let state = async |c: &mut sqlx::PgConnection| jobs::find(c, job.id()).await.unwrap().unwrap();
    eventually("the job runs", S(5), async || state(&mut c).await.state == jobs::JobState::Running).await;
    first.signal(Signal::SIGKILL);
    first.wait(S(20)).await;
    let _second = deployment.start("worker", two, &lease);
    eventually("another worker finishes it", S(15), async || {
        state(&mut c).await.state == jobs::JobState::Completed
    })
    .await;
    assert_eq!(state(&mut c).await.attempt, 2, "the attempt that died was counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_within_a_second() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let mut worker = deployment.start("worker", port, &[("SHUTDOWN_BUDGET", "60s")]);
    ready(port).await;
    let mut c = deployment.database.pool().acquire().await.unwrap();
    let job = jobs::enqueue_raw(
        &mut c,
        "echo",
        json!({ "message": "x", "sleep_ms": 60_000 }),
        jobs::EnqueueOptions::default(),
    )
    .await
    .unwrap();
    eventually("the job runs", S(5), async || {
        jobs::find(&mut c, job.id()).await.unwrap().unwrap().state == jobs::JobState::Running
    })
    .await;
    worker.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(worker.is_running(), "waits for the job");
    worker.signal(Signal::SIGTERM);
    let (status, took) = worker.wait(S(20)).await;
    assert!(took < S(if in_full() { 1 } else { 10 }), "far less than its budget: {took:?}");
    assert_eq!(status.code(), Some(1), "{}", worker.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_during_the_start_ends_it_too() {
    let port = free_port().to_string();
    let vars = [
        ("PORT", port.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
    ];
    for role in ["api", "worker"] {
        let mut process = Process::start(&[role], &vars);
        eventually("liveness without any dependency", S(10), async || {
            reqwest::get(format!("http://127.0.0.1:{port}/livez")).await.is_ok_and(|r| r.status() == 200)
        })
        .await;
        let body = reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.unwrap();
        assert_eq!(body.status(), 503);
        assert!(body.text().await.unwrap().contains("postgres"));
        process.signal(Signal::SIGTERM);
        let (status, took) = process.wait(S(20)).await;
        assert_eq!((status.code(), took < S(8)), (Some(0), true), "{role}: {took:?} {}", process.output());
    }
}
