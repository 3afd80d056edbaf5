//! The profile `observability` in the production stack: Prometheus finds every container by itself, nothing is wrong with what runs
//! well, and the dashboards' questions have answers.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use devstack::process::output_within;

use super::production::{DEPLOY_TIMEOUT, Production, said};
use crate::interrupts;
use crate::ui::Ui;

/// A new container is found within ten seconds and asked within fifteen more.
const FOUND: Duration = Duration::from_secs(120);
/// Panels that nothing has happened for yet are empty: refusals, lost leases, open breakers. A rate is there after two looks.
const AT_LEAST_ANSWERED: usize = 30;

pub(super) fn start(production: &Production<'_>) -> Result<()> {
    // It may have to be fetched.
    let mut command = production.docker_compose_command(&["up", "--detach", "prometheus"]);
    let output = output_within(&mut command, DEPLOY_TIMEOUT)?;
    ensure!(output.status.success(), "Prometheus does not start:\n{}", said(&output));
    Ok(())
}

pub(super) fn check(production: &Production<'_>, ui: &Ui) -> Result<()> {
    let until = Instant::now() + FOUND;
    // A container that was replaced is forgotten, and not taken for one that is down.
    let (all, up) = ("count by (job) (up)", "count by (job) (up == 1)");
    loop {
        let [all, up] = ask(production, &[all, up])?.try_into().ok().context("two answers")?;
        let wanted = |answer: &str| {
            ["{job=\"api\"} => 2 ", "{job=\"worker\"} => 1 "].iter().all(|line| answer.contains(line))
        };
        if wanted(&all) && wanted(&up) {
            break;
        }
        ensure!(
            Instant::now() < until,
            "Prometheus does not find two API containers and a worker: {all} {up}"
        );
        std::thread::sleep(Duration::from_secs(2));
    }
    let alerts = ask(production, &["ALERTS{alertstate=\"firing\"}"])?.concat();
    ensure!(alerts.is_empty(), "alerts while all is well: {alerts}");
    let expressions = expressions(production)?;
    let asked: Vec<_> = expressions.iter().map(String::as_str).collect();
    let answered = loop {
        let answers = ask(production, &asked)?;
        let silent: Vec<_> = asked.iter().zip(&answers).filter(|(_, answer)| answer.is_empty()).collect();
        let answered = asked.len() - silent.len();
        if answered >= AT_LEAST_ANSWERED {
            break answered;
        }
        ensure!(
            Instant::now() < until,
            "too few of the dashboards' questions have answers; none: {silent:#?}"
        );
        std::thread::sleep(Duration::from_secs(5));
    };
    ui.step(&format!(
        "Prometheus finds two API containers and the worker, no alert fires, {answered} of {} questions of the dashboards have answers",
        expressions.len()
    ));
    Ok(())
}

/// What the dashboards ask.
fn expressions(production: &Production<'_>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(production.compose.root().join("deploy/grafana/dashboards"))? {
        let text = fs::read_to_string(entry?.path())?;
        let lines =
            text.lines().filter_map(|line| line.trim().strip_prefix("\"expr\": \"")?.rsplit_once('"'));
        all.extend(
            lines.map(|(expression, _)| expression.replace("\\\"", "\"").replace("$__rate_interval", "1m")),
        );
    }
    ensure!(!all.is_empty(), "no dashboard asks anything");
    Ok(all)
}

/// Prometheus's answers, with its own client, in one go.
fn ask(production: &Production<'_>, expressions: &[&str]) -> Result<Vec<String>> {
    const ALL: &str =
        "for q in \"$@\"; do promtool query instant http://127.0.0.1:9090 \"$q\" || exit; echo ---; done";
    interrupts::check()?;
    let command = ["exec", "-T", "prometheus", "sh", "-c", ALL, "ask"];
    let output = production.docker_compose(&[&command[..], expressions].concat())?;
    ensure!(output.status.success(), "Prometheus refuses a question:\n{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let answers = text.split_terminator("---\n").map(|answer| answer.trim().to_owned());
    Ok(answers.collect())
}
