//! Requests that must look alike, in what they are answered and in the time that takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{Answer, in_full};

/// Samples of each kind.
const IN_FULL: usize = 400;
const SMALL: usize = 30;
const WARM_UP: usize = 5;

/// An answer without what is different in any two answers.
fn comparable(answer: &Answer) -> (u16, Value, BTreeMap<String, String>) {
    let mut body = answer.json();
    if body.get("request_id").is_some() {
        body["request_id"] = json!(null);
    }
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

/// Asks each kind of request in turn, with the number of the round: all are answered in the same words with `status`, and the
/// others take as long as the first. `slack` is what a small run on a busy machine may be apart beside half of the median.
#[expect(clippy::print_stdout, reason = "the figures are what a run in full is for")]
pub(super) async fn assert_alike<const N: usize>(
    what: &str,
    kinds: [&str; N],
    (status, slack): (u16, Duration),
    mut ask: impl AsyncFnMut(usize, usize) -> Answer,
) {
    let samples = if in_full() { IN_FULL } else { SMALL };
    let mut times = [const { Vec::new() }; N];
    let mut first = None;
    for round in 0..WARM_UP + samples {
        // Interleaved, each kind as often first as last: what the machine does meanwhile hits all.
        for turn in 0..N {
            let kind = (round + turn) % N;
            let started = Instant::now();
            let answer = ask(kind, round).await;
            let took = started.elapsed();
            let answer = comparable(&answer.expect(status));
            assert_eq!(&answer, first.get_or_insert_with(|| answer.clone()), "{what}: {}", kinds[kind]);
            if round >= WARM_UP {
                times[kind].push(took);
            }
        }
    }
    let medians = times.each_ref().map(|times| median(times));
    println!("{what}, median of {samples}: {kinds:?} {medians:?}");
    for other in 1..N {
        let gap = medians[0].abs_diff(medians[other]);
        let slower = superiority(&times[0], &times[other]) * 100.0;
        println!(
            "{} and {}: {gap:?} apart, the first is slower in {slower:.1} % of all pairs",
            kinds[0], kinds[other]
        );
        let allowed =
            if in_full() { Duration::from_millis(3).max(medians[0] / 20) } else { medians[0] / 2 + slack };
        assert!(gap < allowed, "{what}, {}: {gap:?} apart, {allowed:?} are allowed", kinds[other]);
    }
}
