//! `ballast keygen`: what it prints is what a deployment needs.

use std::{collections::BTreeMap, time::Duration};

use config::{ApiConfig, MapVars, VARIABLES, WhenUnset, WorkerConfig};
use nix::sys::signal::Signal;
use test_support::{TestDatabase, test_redis};

use crate::{
    cli::run,
    support::{Process, eventually, free_port},
};

fn made(output: &str) -> BTreeMap<&str, &str> {
    output
        .lines()
        .map(|line| line.split_once('=').unwrap_or_else(|| panic!("not NAME=value: {line}")))
        .collect()
}

#[test]
fn keygen_makes_every_secret_that_a_deployment_has_to_make_and_each_time_another() {
    let (code, first, _) = run(&["keygen"], &[]);
    assert_eq!(code, 0);
    let second = run(&["keygen"], &[]).1;
    let (first, second) = (made(&first), made(&second));
    for variable in VARIABLES.iter().filter(|v| matches!(v.default, WhenUnset::Sample { .. })) {
        assert!(first.contains_key(variable.name), "{} is not made", variable.name);
    }
    assert!(first.contains_key("METRICS_TOKEN"));
    for (name, value) in &first {
        assert!(VARIABLES.iter().any(|v| v.name == *name && v.secret), "{name} is no secret of the table");
        assert_ne!(second[name], *value, "{name}");
    }
}

#[test]
fn generated_secrets_make_a_valid_production_configuration() {
    let (code, stdout, stderr) = run(&["keygen", "--kid", "k2026"], &[]);
    assert_eq!(code, 0);
    let mut vars = MapVars::from([
        ("APP_ENV", "production"),
        ("DATABASE_URL", "postgres://u:p@h/d"),
        ("REDIS_URL", "redis://h"),
        ("ENGINE_URL", "http://h/v1"),
        ("PUBLIC_URL", "https://api.example.com"),
        ("TRUSTED_PROXY", "railway"),
    ]);
    for (name, value) in made(&stdout) {
        vars.set(name, value);
        assert!(!stderr.contains(value), "standard error shows only what is public");
    }
    assert_eq!(ApiConfig::from_vars(&vars).unwrap().auth.signing_key.kid, "k2026");
    WorkerConfig::from_vars(&vars).unwrap();
}

#[test]
fn one_secret_can_be_made_alone_and_its_public_half_again() {
    let (code, stdout, _) = run(&["keygen", "--only", "CHANNEL_ENCRYPTION_KEY"], &[]);
    let (name, value) = stdout.trim_end().split_once('=').unwrap();
    assert_eq!((code, name, value.len()), (0, "CHANNEL_ENCRYPTION_KEY", 64));

    let (_, stdout, stderr) = run(&["keygen", "--only", "JWT_SIGNING_KEY"], &[]);
    let signing = made(&stdout)["JWT_SIGNING_KEY"];
    let (code, half, _) = run(&["keygen", "--public-half"], &[("JWT_SIGNING_KEY", signing)]);
    assert_eq!(code, 0);
    let half = made(&half)["JWT_VERIFY_KEYS"];
    assert!(stderr.contains(half), "{stderr}");
    half.parse::<config::VerifyKey>().unwrap();

    for (arguments, vars, code) in [
        (vec!["keygen", "--only", "ENGINE_API_KEY"], vec![], 2),
        (vec!["keygen", "--kid", "../x"], vec![], 2),
        (vec!["keygen", "--public-half"], vec![], 1),
        (vec!["keygen", "--public-half"], vec![("JWT_SIGNING_KEY", "k1:hunter2")], 1),
    ] {
        let (got, _, stderr) = run(&arguments, &vars);
        assert_eq!(got, code, "{arguments:?}: {stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

/// Case A14, the good half: with what keygen prints a production deployment starts; `config`'s own tests have the bad one.
#[tokio::test(flavor = "multi_thread")]
async fn generated_secrets_boot_a_production_deployment() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let port = free_port();
    let port_text = port.to_string();
    let secrets = run(&["keygen"], &[]).1;
    let mut vars = vec![
        ("APP_ENV", "production"),
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("DATABASE_POOL_SIZE", "5"),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("PUBLIC_URL", "https://api.example.com"),
        ("TRUSTED_PROXY", "none"),
        ("SHUTDOWN_DELAY", "0s"),
    ];
    vars.extend(made(&secrets));
    let mut all = Process::start(&["all"], &vars);
    let url = format!("http://127.0.0.1:{port}");
    let client = reqwest::Client::builder().build().unwrap();
    eventually("readiness", Duration::from_secs(20), async || {
        client.get(format!("{url}/readyz")).send().await.is_ok_and(|r| r.status() == 200)
    })
    .await;
    let metrics = client.get(format!("{url}/metrics"));
    assert_eq!(metrics.try_clone().unwrap().send().await.unwrap().status(), 401);
    let token = made(&secrets)["METRICS_TOKEN"];
    assert_eq!(metrics.bearer_auth(token).send().await.unwrap().status(), 200);
    let jwks = client.get(format!("{url}/.well-known/jwks.json")).send().await.unwrap();
    let kid = made(&secrets)["JWT_SIGNING_KEY"].split(':').next().unwrap();
    assert_eq!(jwks.json::<serde_json::Value>().await.unwrap()["keys"][0]["kid"], kid);
    all.signal(Signal::SIGTERM);
    let (status, _) = all.wait(Duration::from_secs(20)).await;
    assert!(status.success(), "{}", all.output());
    for secret in made(&secrets).values() {
        assert!(!all.output().contains(secret), "the log shows a secret");
    }
}
