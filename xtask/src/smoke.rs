//! The main job of the stack, tried on a running API: log in, stream a completion, have a job run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::http::{self, Answer, string_field};
use crate::interrupts;
use crate::ui::Ui;

const JOB_TIMEOUT: Duration = Duration::from_secs(30);

/// The seeded account, as `ballast seed --json` prints it.
#[derive(Debug)]
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
}

/// Tries the API on this port of 127.0.0.1.
pub(crate) fn run(port: u16, demo: &Demo, ui: &Ui) -> Result<()> {
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

    let stream = expect(post(port, "/v1/chat/completions", Some(&token), &chat(true))?, 200, "the stream")?;
    let events = stream.body.lines().filter(|line| line.starts_with("data:")).count();
    ensure!(
        stream.headers.contains("content-type: text/event-stream"),
        "not an event stream:\n{}",
        stream.headers
    );
    ensure!(events > 2 && stream.body.contains("data: [DONE]"), "not a whole stream:\n{}", stream.body);
    ui.step(&format!("stream: {events} events"));

    let with_key = post(port, "/v1/chat/completions", Some(&demo.api_key), &chat(false))?;
    expect(with_key, 200, "a completion with the API key")?;
    ui.step("completion with the API key");

    let job = r#"{"kind":"echo","args":{"message":"smoke"}}"#;
    let accepted = expect(post(port, "/v1/jobs", Some(&token), job)?, 202, "the job")?;
    let id = string_field(&accepted.body, "id").context("the job has no id")?;
    let deadline = Instant::now() + JOB_TIMEOUT;
    loop {
        let path = format!("/v1/jobs/{id}");
        let bearer = format!("Bearer {token}");
        let shown = http::request(port, "GET", &path, &[("authorization", &bearer)], "")?;
        let shown = expect(shown, 200, "the job's state")?;
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

fn chat(stream: bool) -> String {
    format!(
        r#"{{"model":"sim-small","stream":{stream},"messages":[{{"role":"user","content":"Smoke test"}}]}}"#
    )
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
