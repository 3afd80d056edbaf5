//! Does the time of a refused login tell whether there is an account?

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{Answer, PASSWORD, TestApp, in_full};

/// Samples of each kind.
const IN_FULL: usize = 400;
const SMALL: usize = 30;

#[derive(Debug, Clone, Copy)]
enum Account {
    Known,
    Unknown,
    /// Asked with its right password: everything but the last step is as for a login that succeeds.
    Disabled,
}

/// An answer without what is different in any two answers.
fn comparable(answer: &Answer) -> (u16, serde_json::Value, BTreeMap<String, String>) {
    let mut body = answer.json();
    body["request_id"] = json!(null);
    let changing = ["date", "x-request-id", "ratelimit"];
    let headers = answer.headers.iter().map(|(name, value)| {
        let value = if changing.contains(&name.as_str()) { "" } else { value.to_str().unwrap() };
        (name.to_string(), value.to_owned())
    });
    (answer.status, body, headers.collect())
}

fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// How often a sample of `one` is slower than one of `other`: 0.5 when nothing tells them apart. Mann and Whitney's U as a
/// share of all pairs (1947).
fn superiority(one: &[Duration], other: &[Duration]) -> f64 {
    let wins: f64 = one
        .iter()
        .flat_map(|a| {
            other.iter().map(move |b| f64::from(u8::from(a > b)) + 0.5 * f64::from(u8::from(a == b)))
        })
        .sum();
    wins / (one.len() * other.len()) as f64
}

/// Case A9.
#[tokio::test(flavor = "multi_thread")]
async fn neither_the_answer_nor_the_time_of_a_login_tells_whether_there_is_an_account() {
    let app = TestApp::with(&[
        ("RATE_LIMIT_LOGIN", "1000000/15m"),
        ("RATE_LIMIT_GLOBAL", "1000000/15m"),
        ("RATE_LIMIT_SIGNUP", "1000/15m"),
    ])
    .await;
    let (known, disabled) = (app.user().await, app.user().await);
    sqlx::query("update users set disabled_at = now() where email = $1")
        .bind(&disabled.email)
        .execute(app.database.pool())
        .await
        .unwrap();
    let caller = app.anonymous();
    let samples = if in_full() { IN_FULL } else { SMALL };
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut answers = Vec::new();
    let warm_up = 5;
    for round in 0..warm_up + samples {
        // Interleaved, each kind as often first as last: what the machine does meanwhile hits all.
        for turn in 0..3 {
            let kind = (round + turn) % 3;
            let account = [Account::Known, Account::Unknown, Account::Disabled][kind];
            let (email, password) = match account {
                Account::Known => (known.email.clone(), "a wrong password"),
                Account::Unknown => (format!("nobody{round}@example.com"), "a wrong password"),
                Account::Disabled => (disabled.email.clone(), PASSWORD),
            };
            let started = Instant::now();
            let answer = caller.post("/v1/auth/login", json!({ "email": email, "password": password })).await;
            let took = started.elapsed();
            let answer = comparable(&answer.problem(401, "invalid_credentials"));
            if answers.is_empty() {
                answers.push(answer);
            } else {
                assert_eq!(answer, answers[0], "{account:?}");
            }
            if round >= warm_up {
                times[kind].push(took);
            }
        }
    }
    let medians = [0, 1, 2].map(|kind| median(&times[kind]));
    println!(
        "login refused, median of {samples}: known {:?}, unknown {:?}, disabled {:?}",
        medians[0], medians[1], medians[2]
    );
    for (other, name) in [(1, "unknown"), (2, "disabled")] {
        let gap = medians[0].abs_diff(medians[other]);
        let slower = superiority(&times[0], &times[other]);
        println!("known and {name}: {gap:?} apart, known is slower in {:.1} % of all pairs", slower * 100.0);
        if in_full() {
            let allowed = Duration::from_millis(3).max(medians[0] / 20);
            assert!(gap < allowed, "{name}: {gap:?} apart, {allowed:?} are allowed");
        } else {
            // Without the dummy hash an unknown account would be told twenty times as quickly.
            assert!(gap < medians[0] / 2, "{name}: {medians:?}");
        }
    }
}
