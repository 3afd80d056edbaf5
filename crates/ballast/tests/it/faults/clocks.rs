//! Case R4: wrong clocks. libfaketime (Debian: `faketime`) sets those of real processes; where it is not installed, only the
//! clock inside an API is moved.

use std::path::Path;

use chrono::TimeDelta;
use serde_json::json;

use super::redis_server::RedisServer;
use crate::support::{Deployment, TestApp, free_port, in_full, ready};

/// The library, where there is one.
fn libfaketime() -> Option<String> {
    let arch = std::env::consts::ARCH;
    let places = [
        format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1"),
        "/usr/lib/faketime/libfaketimeMT.so.1".to_owned(),
        "/usr/lib64/faketime/libfaketimeMT.so.1".to_owned(),
        "/usr/local/lib/faketime/libfaketimeMT.so.1".to_owned(),
    ];
    let found = places.into_iter().find(|place| Path::new(place).exists());
    if found.is_none() {
        // Where everything is to be shown, something missing is a failure.
        assert!(!in_full() && std::env::var_os("CI").is_none(), "libfaketime is not installed");
        eprintln!("skipped: libfaketime is not installed (Debian: apt-get install faketime)");
    }
    found
}

/// Tries to log in with a wrong password; how many of so many attempts at each of these were let through, and the longest
/// time that somebody was told to wait.
async fn attempts(urls: &[String], of_each: usize, email: &str) -> (usize, u64) {
    let client = reqwest::Client::new();
    let body = json!({ "email": email, "password": "guess guess" });
    let (mut passed, mut longest) = (0, 0);
    for _ in 0..of_each {
        for url in urls {
            let answer = client.post(format!("{url}/v1/auth/login")).json(&body).send().await.unwrap();
            if answer.status() == 401 {
                passed += 1;
                continue;
            }
            assert_eq!(answer.status(), 429);
            longest = longest.max(answer.headers()["retry-after"].to_str().unwrap().parse().unwrap());
        }
    }
    (passed, longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_clock_is_ten_minutes_off_counts_like_the_others() {
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "5/15m")]).await;
    let (ahead, behind) =
        (app.replica_off_by(TimeDelta::minutes(10)), app.replica_off_by(TimeDelta::minutes(-10)));
    let urls = [&app, &ahead, &behind].map(|app| app.url.clone());
    let (passed, longest) = attempts(&urls, 4, "a@example.com").await;
    assert!(passed == 5 && (1..=900).contains(&longest), "{passed} passed, told to wait {longest} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_replicas_whose_clocks_are_ten_minutes_ahead_and_behind_count_like_the_others() {
    let Some(library) = libfaketime() else { return };
    let deployment = Deployment::new().await;
    let mut processes = Vec::new();
    for offset in ["+0", "+600", "-600"] {
        let port = free_port();
        let vars = [
            ("RATE_LIMIT_LOGIN", "5/15m"),
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        processes.push((offset, port, deployment.start("api", port, &vars)));
    }
    let mut urls = Vec::new();
    for (offset, port, _) in &processes {
        ready(*port).await;
        let url = format!("http://127.0.0.1:{port}");
        // The clock is false, or this would show nothing.
        let date = reqwest::get(format!("{url}/livez")).await.unwrap().headers()["date"].clone();
        let date = chrono::DateTime::parse_from_rfc2822(date.to_str().unwrap()).unwrap();
        let off = (date.to_utc() - chrono::Utc::now()).num_seconds();
        assert!((off - offset.parse::<i64>().unwrap()).abs() < 30, "{offset}: {off} s");
        urls.push(url);
    }
    let (passed, longest) = attempts(&urls, 5, "b@example.com").await;
    assert!(passed == 5 && (1..=900).contains(&longest), "{passed} passed, told to wait {longest} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_redis_whose_clock_steps_back_keeps_the_count_and_locks_nobody_out_for_longer_than_a_period() {
    let Some(library) = libfaketime() else { return };
    let clock = tempfile::NamedTempFile::new().unwrap();
    let set = |offset: &str| std::fs::write(clock.path(), format!("{offset}\n")).unwrap();
    set("+0");
    // The C library's own allocator: that of Redis asks for the time before the false clock is there.
    let preload = format!("{library} libc.so.6");
    let redis = RedisServer::start_with(&[
        ("LD_PRELOAD", preload.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.path().to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ])
    .await;
    let mut asked = super::redis_at(&redis.url()).await;
    let mut time = async || {
        let (seconds, _): (i64, i64) = db::redis_client::cmd("TIME").query_async(&mut asked).await.unwrap();
        seconds - chrono::Utc::now().timestamp()
    };
    let app = TestApp::with(&[("RATE_LIMIT_LOGIN", "5/15m"), ("REDIS_URL", &redis.url())]).await;
    let urls = [app.url.clone()];
    let (passed, _) = attempts(&urls, 3, "c@example.com").await;
    assert_eq!(passed, 3);

    set("-600");
    assert!((time().await + 600).abs() < 30, "the clock is false, or this would show nothing");
    let (passed, longest) = attempts(&urls, 6, "c@example.com").await;
    assert!(passed == 2 && (1..=900).contains(&longest), "{passed} passed, told to wait {longest} s");
    set("-3600");
    let (passed, longest) = attempts(&urls, 4, "c@example.com").await;
    assert!(passed == 0 && (1..=900).contains(&longest), "{passed} passed, told to wait {longest} s");
    // A period later by its own clock, which is still an hour behind.
    set("-2690");
    let (passed, _) = attempts(&urls, 8, "c@example.com").await;
    assert_eq!(passed, 5, "whoever waited a period has all of it again");
    let answer = app.anonymous().get("/health").await;
    assert_eq!(
        answer.json()["checks"]["redis"]["status"],
        "ok",
        "Redis decided all the time: {}",
        answer.text
    );
}
