//! .github/workflows and .ci/run.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use yaml_rust2::Yaml;

use crate::files::{pairs, path, strings, text, yaml};

fn workflows() -> Vec<(String, Yaml)> {
    let files = fs::read_dir(path(".github/workflows")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> =
        files.map(|name| format!(".github/workflows/{}", name.to_str().unwrap())).collect();
    names.sort();
    assert!(names.len() >= 2, "{names:?}");
    names.into_iter().map(|name| (name.clone(), yaml(&name))).collect()
}

fn jobs() -> Vec<(String, Yaml)> {
    let all = workflows().into_iter();
    all.flat_map(|(file, workflow)| {
        pairs(&workflow["jobs"]).into_iter().map(move |(job, body)| (format!("{file} {job}"), body))
    })
    .collect()
}

fn steps(job: &Yaml) -> Vec<Yaml> {
    job["steps"].as_vec().cloned().unwrap_or_default()
}

#[test]
fn every_action_is_pinned_by_its_commit_and_says_its_version() {
    for (file, _) in workflows() {
        let uses = text(&file);
        let uses: Vec<_> =
            uses.lines().filter_map(|line| line.split_once("uses: ").map(|(_, rest)| rest)).collect();
        for action in uses {
            let (name, version) =
                action.split_once(" # ").unwrap_or_else(|| panic!("{file}: no version: {action}"));
            let commit = name.split_once('@').unwrap().1;
            assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{file}: {action}");
            assert!(version.starts_with('v'), "{file}: {action}");
        }
    }
}

#[test]
fn workflows_may_read_and_nothing_else() {
    for (file, workflow) in workflows() {
        let permissions = pairs(&workflow["permissions"]);
        let permissions: Vec<_> =
            permissions.iter().map(|(what, how)| (what.as_str(), how.as_str().unwrap())).collect();
        assert_eq!(permissions, [("contents", "read")], "{file}");
    }
    for (job, body) in jobs() {
        assert!(body["permissions"].is_badvalue(), "{job}");
        for step in steps(&body) {
            if step["uses"].as_str().is_some_and(|action| action.starts_with("actions/checkout@")) {
                // Otherwise the token stays in .git/config, for every later step to read.
                assert_eq!(step["with"]["persist-credentials"].as_bool(), Some(false), "{job}");
            }
        }
    }
}

#[test]
fn every_job_has_a_time_limit_and_a_fixed_runner() {
    for (job, body) in jobs() {
        // Two hours of soak, and the build before it.
        let most = if job.ends_with("nightly.yml soak") { 180 } else { 60 };
        assert!(body["timeout-minutes"].as_i64().is_some_and(|minutes| minutes <= most), "{job}");
        assert_eq!(body["runs-on"].as_str(), Some("ubuntu-24.04"), "{job}");
    }
}

#[test]
fn no_script_is_put_together_from_what_others_can_name() {
    for (job, body) in jobs() {
        for step in steps(&body) {
            let script = step["run"].as_str().unwrap_or_default();
            assert!(!script.contains("${{"), "{job}: pass it by env: {script}");
        }
    }
}

#[test]
fn ci_runs_on_every_change_and_a_newer_one_replaces_the_older() {
    let ci = yaml(".github/workflows/ci.yml");
    assert_eq!(strings(&ci["on"]["push"]["branches"]), ["main", "staging"]);
    assert!(pairs(&ci["on"]).iter().any(|(event, _)| event == "pull_request"));
    assert!(ci["concurrency"]["group"].as_str().unwrap().contains("github.ref"));
    let scripts: String = jobs()
        .iter()
        .flat_map(|(_, job)| steps(job))
        .filter_map(|s| s["run"].clone().into_string())
        .collect();
    for command in [
        "cargo fmt --all --check",
        "cargo clippy",
        "cargo deny",
        "cargo verify",
        "cargo xtask prepare --check",
        "--test infra migrations",
        "--test it migrat",
        "--package api --test openapi",
        "cargo xtask image",
    ] {
        assert!(scripts.contains(command), "{command}");
    }
    // What is in the image, and whether anything of it has a known hole.
    let image = steps(&ci["jobs"]["image"]);
    for action in ["anchore/sbom-action@", "anchore/scan-action@"] {
        let step =
            image.iter().find(|step| step["uses"].as_str().is_some_and(|uses| uses.starts_with(action)));
        assert_eq!(step.unwrap_or_else(|| panic!("{action}"))["with"]["image"].as_str(), Some("ballast:ci"));
    }
    // Tests in a database of the version that ships.
    let compose = yaml("docker-compose.yml");
    for store in ["postgres", "redis"] {
        let image = &ci["jobs"]["schema"]["services"][store]["image"];
        assert_eq!(image, &compose["services"][store]["image"], "{store}");
    }
}

#[test]
fn at_night_everything_runs_that_takes_too_long_for_a_push() {
    let nightly = yaml(".github/workflows/nightly.yml");
    let scripts: Vec<_> = pairs(&nightly["jobs"])
        .iter()
        .flat_map(|(_, job)| steps(job))
        .filter_map(|step| step["run"].clone().into_string())
        .collect();
    for command in [
        "cargo deny",
        "cargo verify --full",
        "cargo xtask abuse",
        "cargo xtask fuzz",
        "cargo xtask removal",
        "cargo xtask rename acme-backend",
        "cargo xtask soak",
        "cargo xtask upgrade",
    ] {
        assert!(scripts.iter().any(|script| script.contains(command)), "{command}");
    }
}

#[test]
fn at_night_parsers_are_fuzzed_and_everything_runs_in_full() {
    let nightly = yaml(".github/workflows/nightly.yml");
    assert!(nightly["on"]["schedule"][0]["cron"].as_str().is_some());
    let jobs = pairs(&nightly["jobs"]);
    let scripts: String =
        jobs.iter().flat_map(|(_, job)| steps(job)).filter_map(|s| s["run"].clone().into_string()).collect();
    for command in ["cargo xtask fuzz", "cargo verify --full", "cargo deny"] {
        assert!(scripts.contains(command), "{command}");
    }
}

#[test]
fn only_what_ci_passed_is_deployed() {
    let deploy = yaml(".github/workflows/deploy.yml");
    let trigger = &deploy["on"]["workflow_run"];
    assert_eq!(strings(&trigger["workflows"]), [yaml(".github/workflows/ci.yml")["name"].as_str().unwrap()]);
    assert_eq!(strings(&trigger["branches"]), ["main", "staging"]);
    let job = &deploy["jobs"]["deploy"];
    let condition = job["if"].as_str().unwrap();
    for part in ["conclusion == 'success'", "event == 'push'", "full_name == github.repository"] {
        assert!(condition.contains(part), "{part}");
    }
    assert_eq!(job["concurrency"]["cancel-in-progress"].as_bool(), Some(false));
    for place in ["environment", "env"] {
        let environment =
            if place == "env" { &job["env"]["RAILWAY_ENVIRONMENT"] } else { &job["environment"] };
        assert!(environment.as_str().unwrap().contains("'main' && 'production' || 'staging'"), "{place}");
    }
    let steps = steps(job);
    let checkout = steps.iter().find(|step| step["uses"].as_str().is_some()).unwrap();
    assert_eq!(checkout["with"]["ref"].as_str(), Some("${{ github.event.workflow_run.head_sha }}"));
    // Only what talks to Railway, or asks whether it may, sees the token.
    let with_token = |step: &&Yaml| !step["env"]["RAILWAY_TOKEN"].is_badvalue();
    assert!(job["env"]["RAILWAY_TOKEN"].is_badvalue());
    assert_eq!(steps.iter().filter(with_token).count(), 4);
    assert!(!steps.iter().filter(with_token).any(|step| step["run"].as_str().unwrap().contains("npm")));
    // Without a token there is a notice, and nothing else happens.
    assert!(steps[0]["run"].as_str().unwrap().contains("::notice"));
    let only_with_a_token = |step: &Yaml| {
        step["if"].as_str().is_some_and(|when| when.ends_with("steps.token.outputs.found == 'true'"))
    };
    assert!(steps[1..].iter().all(only_with_a_token));
}

#[test]
fn a_deploy_waits_for_its_verdict_and_takes_the_api_first() {
    let deploy = yaml(".github/workflows/deploy.yml");
    let steps = steps(&deploy["jobs"]["deploy"]);
    let ups: Vec<_> =
        steps.iter().filter_map(|s| s["run"].as_str()).filter(|run| run.contains("railway up")).collect();
    assert_eq!(
        ups,
        ["api", "worker", "backup"].map(|service| format!(
            ".railway/node_modules/.bin/railway up --service {service} --environment \"$RAILWAY_ENVIRONMENT\" --ci"
        ))
    );
    // Every service that the environment has, and none that it has not: backups are made of production.
    for (environment, has) in [("production", 3), ("staging", 2)] {
        let resources = yaml(".railway/evaluated.json")[environment]["resources"].clone();
        let services =
            resources.as_vec().unwrap().iter().filter(|node| node["type"].as_str() == Some("service"));
        assert_eq!(services.count(), has, "{environment}");
    }
    let only_in_production = |step: &&Yaml| {
        step["if"].as_str().unwrap_or_default().contains("env.RAILWAY_ENVIRONMENT == 'production'")
    };
    let special: Vec<_> =
        steps.iter().filter(only_in_production).map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(special, ["Backup"]);
    // The version is the lockfile's.
    let install = steps.iter().filter_map(|s| s["run"].as_str()).find(|run| run.contains("npm"));
    assert_eq!(install.map(|run| run.starts_with("npm ci --prefix .railway")), Some(true));
    let pinned = text(".railway/package.json").contains("\"@railway/cli\": \"5.");
    assert!(pinned && text(".railway/package-lock.json").contains("node_modules/@railway/cli"));
}

#[test]
fn after_a_deploy_it_is_tried_from_outside_and_somebody_is_told_whatever_came_of_it() {
    let deploy = yaml(".github/workflows/deploy.yml");
    let steps = steps(&deploy["jobs"]["deploy"]);
    let runs = |step: &Yaml, words: &[&str]| {
        let script = step["run"].as_str().unwrap_or_default().to_owned();
        words.iter().all(|word| script.contains(word))
    };
    let position = |words: &[&str]| {
        steps.iter().position(|step| runs(step, words)).unwrap_or_else(|| panic!("{words:?}"))
    };
    let smoke = position(&["/readyz", "/v1/me", "= 401"]);
    assert!(smoke > position(&["railway up", "--service worker"]));
    // A failed smoke test is a failed deploy.
    assert!(steps[smoke]["continue-on-error"].is_badvalue());
    let tell = steps.iter().position(|step| step["name"].as_str() == Some("Tell")).unwrap();
    assert_eq!(tell, steps.len() - 1);
    assert!(steps[tell]["if"].as_str().unwrap().starts_with("always() &&"));
    assert_eq!(steps[tell]["env"]["STATUS"].as_str(), Some("${{ job.status }}"));
}

#[test]
fn ci_run_is_a_program_that_stops_at_the_first_failure() {
    let mode = fs::metadata(path(".ci/run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
    let script = text(".ci/run");
    assert!(script.starts_with("#!/usr/bin/env bash\n") && script.contains("\nset -euo pipefail\n"));
    assert!(script.contains("\ncargo verify") && script.contains("cargo xtask image"));
    assert!(!script.contains("|| true"));
}
