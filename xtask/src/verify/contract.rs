//! The API against its own description: Schemathesis makes requests from the OpenAPI document, good ones and bad ones, alone
//! and in sequences, as a stranger, as a user and as an administrator. A server error, an answer that is not in the document
//! or does not fit its schema, and a missing credential that makes no difference fail the step.
//!
//! How long it may take and what is switched off, with the reasons, is in `xtask/schemathesis/schemathesis.toml`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::process::output_within;

use super::own_stack::OwnStack;
use super::{Bench, Outcome, python};
use crate::cargo;

/// Limits that are not met: that they hold is for other tests.
const ROOMY: [(&str, &str); 9] = [
    ("RATE_LIMIT_GLOBAL", "1000000/15m"),
    ("RATE_LIMIT_LOGIN", "100000/15m"),
    ("RATE_LIMIT_REFRESH", "100000/15m"),
    ("RATE_LIMIT_SIGNUP", "100000/1h"),
    ("RATE_LIMIT_ACCOUNT_MAIL", "100000/1h"),
    ("RATE_LIMIT_AI_REQUESTS", "100000/1m"),
    ("RATE_LIMIT_AI_TOKENS", "1000000000/1m"),
    ("RATE_LIMIT_AI_TOKENS_DAILY", "1000000000/1d"),
    ("AI_CONCURRENT_STREAMS", "1000"),
];
pub(super) fn run(bench: &mut Bench) -> Result<Outcome> {
    let settings = bench.project.root().join("xtask/schemathesis");
    let bin = python::environment(bench, "schemathesis", "xtask/schemathesis/requirements.txt")?;
    let stack = OwnStack::start_with(bench, &ROOMY)?;
    let get = |name: &str| stack.export(name).with_context(|| format!("the stack has no {name}"));
    let url = get("API_URL")?;
    // Another one each time: the stack of an earlier run keeps its own.
    let user = format!("contract-{}@example.com", std::process::id());
    let password = create_user(&stack, &user)?;
    let schemathesis = Schemathesis { program: &bin.join("schemathesis"), settings: &settings, url: &url };
    schemathesis.run(bench, "a stranger", "stranger.toml", None)?;
    schemathesis.run(bench, "a user", "schemathesis.toml", Some((&user, &password)))?;
    let (email, password) = (get("DEMO_EMAIL")?, get("DEMO_PASSWORD")?);
    schemathesis.run(bench, "an administrator", "schemathesis.toml", Some((&email, &password)))?;
    Ok(Outcome::Passed)
}

/// Makes an account that stands for ordinary users, and returns its password.
fn create_user(stack: &OwnStack, email: &str) -> Result<String> {
    let mut command = Command::new(cargo::output_dir()?.join("ballast"));
    command.args(["user", "create", email, "--verified"]);
    for name in ["DATABASE_URL", "REDIS_URL"] {
        command.env(name, stack.export(name).with_context(|| format!("the stack has no {name}"))?);
    }
    let made = output_within(&mut command, Duration::from_secs(30))?;
    let told = String::from_utf8_lossy(&made.stdout).into_owned();
    let password = told.lines().find_map(|line| line.strip_prefix("password: "));
    let refused = || format!("the account cannot be made: {}", String::from_utf8_lossy(&made.stderr));
    password.map(ToOwned::to_owned).with_context(refused)
}

struct Schemathesis<'a> {
    program: &'a Path,
    settings: &'a Path,
    url: &'a str,
}

impl Schemathesis<'_> {
    fn run(&self, bench: &Bench, who: &str, file: &str, account: Option<(&str, &str)>) -> Result<()> {
        bench.ui.step(&format!("as {who}"));
        let mut command = Command::new(self.program);
        // It keeps what it learnt in the working directory.
        command.current_dir(bench.project.data_dir()?).arg("--config-file");
        command.arg(self.settings.join(file)).args(["run", &format!("{}/openapi.json", self.url)]);
        if let Some((email, password)) = account {
            command.env("CONTRACT_EMAIL", email).env("CONTRACT_PASSWORD", password);
        }
        ensure!(cargo::run(&mut command)?.success(), "as {who}, the API and its description do not agree");
        Ok(())
    }
}
