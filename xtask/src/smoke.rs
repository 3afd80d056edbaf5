//! The main job of the stack, tried on a running API: log in, stream a completion token by token, find it in the usage,
//! have a job run.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;

use crate::http::{self, Answer, string_field};
use crate::interrupts;
use crate::ui::Ui;

const SEED_TIMEOUT: Duration = Duration::from_secs(60);
const JOB_TIMEOUT: Duration = Duration::from_secs(30);
/// Usage is written after the answer, not before it.
const USAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The seeded account, as `ballast seed --json` prints it.
#[derive(Debug, Clone)]
pub(crate) struct Demo {
    pub(crate) email: String,
    pub(crate) password: String,
    pub(crate) api_key: String,
}

impl Demo {
    /// Reads a flat object of plain strings.
    pub(crate) fn parse(json: &str) -> Option<Self> {
        let field = |name| string_field(json, name);
        Some(Self { email: field("email")?, password: field("password")?, api_key: field("api_key")? })
    }

    /// What `ballast seed --json` makes, by a command of the caller's. A machine that is very busy may refuse once.
    pub(crate) fn seeded(mut seed: impl FnMut() -> Command) -> Result<Self> {
        let mut said = String::new();
        for _ in 0..3 {
            let out = output_within(&mut seed(), SEED_TIMEOUT)?;
            if let Some(demo) = Self::parse(&String::from_utf8_lossy(&out.stdout)) {
                return Ok(demo);
            }
            said = String::from_utf8_lossy(&out.stderr).into_owned();
        }
        bail!("seed made no account: {}", said.trim())
    }
}

/// Tries the stack with these exports, as `cargo stack --env` prints them.
pub(crate) fn run_with(export: impl Fn(&str) -> Option<String>, ui: &Ui) -> Result<()> {
    let get = |name: &str| export(name).with_context(|| format!("the stack has no {name}"));
    let port = get("API_URL")?.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let demo =
        Demo { email: get("DEMO_EMAIL")?, password: get("DEMO_PASSWORD")?, api_key: get("DEMO_API_KEY")? };
    run(port.context("API_URL has no port")?, &demo, ui)
}

/// Tries the API on this port of 127.0.0.1.
pub(crate) fn run(port: u16, demo: &Demo, ui: &Ui) -> Result<()> {
    expect(http::get(port, "/readyz")?, 200, "/readyz")?;
    let refused = post(port, "/v1/chat/completions", None, &chat(false))?;
    ensure!(
        refused.status == 401,
        "a completion without a token is answered with {}, not 401",
        refused.status
    );

    let credentials = format!(r#"{{"email":"{}","password":"{}"}}"#, demo.email, demo.password);
    let login = expect(post(port, "/v1/auth/login", None, &credentials)?, 200, "the login")?;
    let token =
        string_field(&login.body, "access_token").context("the login answers without access_token")?;
    ui.step("login: a token");

    stream(port, &token, ui)?;

    let with_key = post(port, "/v1/chat/completions", Some(&demo.api_key), &chat(false))?;
    expect(with_key, 200, "a completion with the API key")?;
    ui.step("completion with the API key");

    usage(port, &token, ui)?;
    job(port, &token, ui)
}

/// Every event comes when the engine sends it: a proxy that collects them would deliver all at once.
fn stream(port: u16, token: &str, ui: &Ui) -> Result<()> {
    let answer = expect(post(port, "/v1/chat/completions", Some(token), &chat(true))?, 200, "the stream")?;
    let events = answer.body.lines().filter(|line| line.starts_with("data:")).count();
    ensure!(
        answer.headers.contains("content-type: text/event-stream"),
        "not an event stream:\n{}",
        answer.headers
    );
    ensure!(events > 2 && answer.body.contains("data: [DONE]"), "not a whole stream:\n{}", answer.body);
    let (first, last) = (answer.pieces[0], *answer.pieces.last().expect("an answer has a piece"));
    ensure!(
        answer.pieces.len() > events / 2 && first < last / 2,
        "not token by token: {events} events in {} pieces, the first after {first:?}, the last after {last:?}",
        answer.pieces.len()
    );
    ui.step(&format!(
        "stream: {events} events in {} pieces, the first after {} ms, the last after {} ms",
        answer.pieces.len(),
        first.as_millis(),
        last.as_millis()
    ));
    Ok(())
}

fn usage(port: u16, token: &str, ui: &Ui) -> Result<()> {
    let deadline = Instant::now() + USAGE_TIMEOUT;
    loop {
        let shown = expect(get(port, "/v1/usage", token)?, 200, "the usage")?;
        let counted = |name| http::max_number_field(&shown.body, name).unwrap_or(0);
        let (requests, tokens) = (counted("requests"), counted("completion_tokens"));
        if requests > 0 && tokens > 0 {
            ui.step(&format!("usage: {requests} requests, {tokens} completion tokens"));
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the usage does not show the stream: {}", shown.body);
        interrupts::check()?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn job(port: u16, token: &str, ui: &Ui) -> Result<()> {
    let job = r#"{"kind":"echo","args":{"message":"smoke"}}"#;
    let accepted = expect(post(port, "/v1/jobs", Some(token), job)?, 202, "the job")?;
    let id = string_field(&accepted.body, "id").context("the job has no id")?;
    let deadline = Instant::now() + JOB_TIMEOUT;
    loop {
        let shown = expect(get(port, &format!("/v1/jobs/{id}"), token)?, 200, "the job's state")?;
        match string_field(&shown.body, "state").as_deref() {
            Some("completed") => break,
            _ if Instant::now() > deadline => bail!("the job was not run: {}", shown.body),
            _ => interrupts::check()?,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ui.step("job: completed");
    Ok(())
}

/// Wrong passwords for one account, by turns on every replica: all of them together admit the limit, and not one more.
pub(crate) fn one_login_limit(ports: &[u16], email: &str, limit: usize) -> Result<()> {
    let body = format!(r#"{{"email":"{email}","password":"not-the-password"}}"#);
    let mut admitted = 0;
    for port in ports.iter().cycle().take(limit + ports.len()) {
        interrupts::check()?;
        let answer = http::request(*port, "POST", "/v1/auth/login", &[], &body)?;
        match answer.status {
            401 => admitted += 1,
            429 => ensure!(answer.headers.contains("\r\nretry-after: "), "429 without Retry-After"),
            other => bail!("a wrong password is answered with {other}:\n{}", answer.body),
        }
    }
    ensure!(admitted == limit, "{} replicas admitted {admitted} logins together, not {limit}", ports.len());
    Ok(())
}

fn chat(stream: bool) -> String {
    format!(
        r#"{{"model":"sim-small","stream":{stream},"messages":[{{"role":"user","content":"Smoke test"}}]}}"#
    )
}

fn get(port: u16, path: &str, token: &str) -> Result<Answer> {
    let bearer = format!("Bearer {token}");
    http::request(port, "GET", path, &[("authorization", &bearer)], "").with_context(|| format!("GET {path}"))
}

fn post(port: u16, path: &str, token: Option<&str>, body: &str) -> Result<Answer> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|value| ("authorization", value.as_str())).collect();
    http::request(port, "POST", path, &headers, body).with_context(|| format!("POST {path}"))
}

fn expect(answer: Answer, status: u16, what: &str) -> Result<Answer> {
    ensure!(answer.status == status, "{what} is answered with {}:\n{}", answer.status, answer.body);
    Ok(answer)
}
