//! What the cache of answers gives: the same question again and again, asked of the engine and of the cache, in turn.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::load::percentile;
use super::stand::Stand;
use crate::http::{self, Answer};
use crate::interrupts;
use crate::ui::{self, Ui};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Questions each way
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 50)]
    tokens: u32,
    /// Between two tokens of the simulated engine
    #[arg(long, default_value_t = 10)]
    token_interval_ms: u32,
    /// Cargo's profile to build with
    #[arg(long, default_value = "release")]
    profile: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let stand = Stand::start(&args.profile, &ui)?;
    ui.step(&format!("{} questions each way, in turn", args.requests));
    let (mut engine, mut hits) = (Vec::new(), Vec::new());
    let asked_before = asked(&stand)?;
    for i in 0..args.requests {
        interrupts::check()?;
        let (took, _) = ask(&stand, args, "off")?;
        engine.push(took);
        let (took, word) = ask(&stand, args, "on")?;
        ensure!((word == "hit") == (i > 0), "question {i} was a {word}");
        if i > 0 {
            hits.push(took);
        }
    }
    let asked = asked(&stand)? - asked_before;
    ensure!(asked == args.requests as u64 + 1, "the engine was asked {asked} times");
    engine.sort_unstable();
    hits.sort_unstable();
    print_table(args, &engine, &hits);
    Ok(ExitCode::SUCCESS)
}

fn print_table(args: &Args, engine: &[Duration], hits: &[Duration]) {
    let Args { requests, tokens, token_interval_ms, profile } = args;
    ui::print(&format!(
        "\na whole answer of {tokens} tokens, one each {token_interval_ms} ms, {requests} times ({profile} build)\n"
    ));
    ui::print(&format!("{:<6}{:>14}{:>14}{:>10}", "", "engine", "cache", "times"));
    for (name, per_mille) in [("p50", 500), ("p90", 900), ("p99", 990)] {
        let (one, other) = (percentile(engine, per_mille), percentile(hits, per_mille));
        let ms = |d: Duration| format!("{:.2} ms", d.as_secs_f64() * 1_000.0);
        let times = one.as_secs_f64() / other.as_secs_f64();
        ui::print(&format!("{name:<6}{:>14}{:>14}{times:>9.0}x", ms(one), ms(other)));
    }
    ui::print(&format!("\nthe engine wrote {tokens} tokens for {} answers of the cache", hits.len() + 1));
}

/// One question: how long the answer took, and what became of it in the cache.
fn ask(stand: &Stand, args: &Args, wish: &str) -> Result<(Duration, String)> {
    let Args { tokens, token_interval_ms, .. } = args;
    let body = format!(
        r#"{{"model":"sim-small","messages":[{{"role":"user","content":"[[sim tokens={tokens} token-interval-ms={token_interval_ms}]]"}}]}}"#
    );
    let authorization = format!("Bearer {}", stand.demo.api_key);
    let headers = [("authorization", authorization.as_str()), ("x-ai-cache", wish)];
    let started = Instant::now();
    let answer = http::request(stand.api_port, "POST", "/v1/chat/completions", &headers, &body)?;
    let took = started.elapsed();
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
    Ok((took, word(&answer)))
}

fn word(answer: &Answer) -> String {
    let header = answer.headers.lines().find_map(|line| line.strip_prefix("x-ai-cache: "));
    header.unwrap_or_default().trim().to_owned()
}

/// How many requests the engine has seen.
fn asked(stand: &Stand) -> Result<u64> {
    let answer = http::get(stand.engine_port, "/control")?;
    let (_, rest) = answer.body.split_once("\"requests_total\":").context("no statistics")?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().context("no number of requests")
}
