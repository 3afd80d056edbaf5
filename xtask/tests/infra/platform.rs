//! railway.toml and deploy/railway.worker.toml.

use std::time::Duration;

use crate::files::{is_command, shutdown_budget, text};

const API: &str = "railway.toml";
const WORKER: &str = "deploy/railway.worker.toml";

/// A value of a file, if it is there. The files are flat, so that this suffices.
fn find(file: &str, name: &str) -> Option<String> {
    let text = text(file);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='))?;
    Some(value.trim().trim_matches(['[', ']', '"']).to_owned())
}

fn value(file: &str, name: &str) -> String {
    find(file, name).unwrap_or_else(|| panic!("{file}: no {name}"))
}

fn number(file: &str, name: &str) -> u64 {
    value(file, name).parse().unwrap_or_else(|_| panic!("{file}: Railway wants a number: {name}"))
}

#[test]
fn railway_gives_the_program_the_time_that_it_takes_to_end() {
    for file in [API, WORKER] {
        let draining = Duration::from_secs(number(file, "drainingSeconds"));
        assert!(draining >= shutdown_budget() + Duration::from_secs(5), "{file}");
    }
    assert!(number(API, "overlapSeconds") > 0, "the new release gets its requests before the old one goes");
    assert_eq!(number(WORKER, "overlapSeconds"), 0);
}

#[test]
fn railway_starts_what_the_image_has() {
    for (file, name, command) in [
        (API, "startCommand", "api"),
        (API, "preDeployCommand", "migrate up"),
        (WORKER, "startCommand", "worker"),
    ] {
        let words = value(file, name);
        let (program, rest) = words.split_once(' ').unwrap();
        assert!(text("Dockerfile").contains(&format!("ENTRYPOINT [\"{program}\"]")), "{words}");
        assert_eq!(rest, command);
        assert!(is_command(rest.split(' ').next().unwrap()), "{words}");
        assert!(!words.contains('$'), "there is no shell that would expand it: {words}");
    }
    for file in [API, WORKER] {
        assert_eq!(
            (value(file, "builder"), value(file, "dockerfilePath")),
            ("DOCKERFILE".into(), "Dockerfile".into())
        );
    }
}

#[test]
fn railway_migrates_once_per_deploy() {
    assert_eq!(value(API, "preDeployCommand"), "/usr/local/bin/ballast migrate up");
    assert_eq!(find(WORKER, "preDeployCommand"), None);
}

#[test]
fn railway_asks_whether_the_api_is_ready_and_waits_long_enough() {
    for (file, replicas) in [(API, 2), (WORKER, 1)] {
        assert_eq!(value(file, "healthcheckPath"), "/readyz");
        assert!(number(file, "healthcheckTimeout") >= 300, "{file}");
        assert_eq!(value(file, "restartPolicyType"), "ON_FAILURE");
        assert_eq!((number(file, "restartPolicyMaxRetries"), number(file, "numReplicas")), (10, replicas));
    }
}

#[test]
fn the_files_say_when_they_end_and_who_owns_the_service_then() {
    for file in [API, WORKER] {
        for said in ["2026-12-01", ".railway/railway.ts", "railway config migrate"] {
            assert!(text(file).contains(said), "{file}: {said}");
        }
    }
    assert!(text(API).contains(WORKER), "the API's file says where the worker's is");
}
