//! railway.toml.

use std::time::Duration;

use crate::files::{is_command, shutdown_budget, text};

/// A value of the file. It is flat, so that this suffices.
fn value(name: &str) -> String {
    let file = text("railway.toml");
    let line = file.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name}")).trim().trim_matches(['[', ']', '"']).to_owned()
}

fn number(name: &str) -> u64 {
    value(name).parse().unwrap_or_else(|_| panic!("Railway wants a number: {name}"))
}

#[test]
fn railway_gives_the_program_the_time_that_it_takes_to_end() {
    assert!(Duration::from_secs(number("drainingSeconds")) >= shutdown_budget() + Duration::from_secs(5));
    assert!(number("overlapSeconds") > 0, "the new release gets its requests before the old one goes");
}

#[test]
fn railway_starts_what_the_image_has() {
    for (name, command) in [("startCommand", "api"), ("preDeployCommand", "migrate up")] {
        let words = value(name);
        let (program, rest) = words.split_once(' ').unwrap();
        assert!(text("Dockerfile").contains(&format!("ENTRYPOINT [\"{program}\"]")), "{words}");
        assert_eq!(rest, command);
        assert!(is_command(rest.split(' ').next().unwrap()), "{words}");
        assert!(!words.contains('$'), "there is no shell that would expand it: {words}");
    }
    assert_eq!(
        (value("builder"), value("dockerfilePath")),
        ("DOCKERFILE".to_owned(), "Dockerfile".to_owned())
    );
}

#[test]
fn railway_asks_whether_the_api_is_ready_and_waits_long_enough() {
    assert_eq!(value("healthcheckPath"), "/readyz");
    assert!(number("healthcheckTimeout") >= 300);
    assert_eq!(value("restartPolicyType"), "ON_FAILURE");
    assert_eq!((number("restartPolicyMaxRetries"), number("numReplicas")), (10, 2));
}

#[test]
fn the_file_says_when_it_ends_and_who_owns_the_service_then() {
    let file = text("railway.toml");
    for said in ["2026-12-01", ".railway/railway.ts", "railway config migrate"] {
        assert!(file.contains(said), "{said}");
    }
}
