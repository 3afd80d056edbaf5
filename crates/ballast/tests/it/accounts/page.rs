//! The commands of `docs/accounts.md`, as they stand there, against the real binary.

use std::{process::Command, time::Duration};

use test_support::{TestDatabase, test_redis};

use crate::support::{Process, eventually, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_accounts_works_as_it_stands() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let port = free_port().to_string();
    let url = format!("http://127.0.0.1:{port}");
    let vars = [
        ("PORT", port.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
    ];
    let seeded = Process::command(&["seed", "--json"], &vars).output().unwrap();
    let demo: serde_json::Value = serde_json::from_slice(&seeded.stdout).unwrap();
    let process = Process::start(&["all"], &vars);
    eventually("readiness", Duration::from_secs(30), async || {
        reqwest::get(format!("{url}/readyz")).await.is_ok_and(|r| r.status() == 200)
    })
    .await;

    let page = include_str!("../../../../../docs/accounts.md");
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    // The first one starts the stack, which is running already.
    let script = blocks.filter(|block| !block.contains("cargo stack")).collect::<String>();
    assert!(script.matches("post /v1/").count() > 10, "{script}");
    let mut command = Command::new("sh");
    command.args(["-eu", "-c", &script]).env("API_URL", &url);
    for (variable, field) in [("DEMO_EMAIL", "email"), ("DEMO_PASSWORD", "password")] {
        command.env(variable, demo[field].as_str().unwrap());
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        process.output()
    );
}
