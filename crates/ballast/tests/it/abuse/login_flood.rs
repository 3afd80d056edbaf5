//! Many logins at once, on the real binary: each hashing takes 19 MiB and a core.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Deployment, PASSWORD, eventually, free_port, in_full, insert_user, metric, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const LOGINS: u64 = 200;
const TURNS: &str = "2";

/// What became of a login.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    In,
    /// 503 with Retry-After, so long after it was sent.
    Busy(Duration),
    /// The client left first.
    Left,
}

/// Case A10.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_logins_at_once_cost_bounded_memory_and_the_excess_is_told_to_come_again() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let room = ("1000000/15m", "1000000/15m");
    let mut api = deployment.start(
        "api",
        port,
        &[
            ("PASSWORD_HASH_CONCURRENCY", TURNS),
            ("RATE_LIMIT_LOGIN", room.0),
            ("RATE_LIMIT_GLOBAL", room.1),
            ("DATABASE_ACQUIRE_TIMEOUT", "20s"),
        ],
    );
    ready(port).await;
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(S(60)).build().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let account = json!({ "email": "a@example.com", "password": PASSWORD });
    insert_user(deployment.database.pool(), "a@example.com", "user").await;
    let baseline = api.memory_kib("VmRSS");

    let over = Arc::new(AtomicBool::new(false));
    let watch = tokio::spawn({
        let (over, client, url) = (over.clone(), client.clone(), url.clone());
        async move {
            let (mut hashings, mut alive) = (Vec::new(), Vec::new());
            while !over.load(Ordering::Relaxed) {
                let started = Instant::now();
                assert_eq!(client.get(format!("{url}/livez")).send().await.unwrap().status(), 200);
                alive.push(started.elapsed());
                hashings.push(metric(port, "password_hashings_running", "").await);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            alive.sort_unstable();
            (hashings, alive)
        }
    });

    let started = Instant::now();
    let fates: Vec<Fate> = join_all((0..LOGINS).map(|n| {
        let request = client.post(format!("{url}/v1/auth/login")).json(&account).send();
        async move {
            // Every second client leaves, sooner or later: while it waits for its turn, or while it is hashed.
            let patience = if n % 2 == 0 { S(60) } else { Duration::from_millis(20 * n) };
            let Ok(answer) = tokio::time::timeout(patience, request).await else { return Fate::Left };
            let answer = answer.unwrap();
            match answer.status().as_u16() {
                200 => Fate::In,
                503 => {
                    assert!(answer.headers().contains_key("retry-after"));
                    Fate::Busy(started.elapsed())
                }
                other => panic!("{other}: {}", answer.text().await.unwrap()),
            }
        }
    }))
    .await;
    over.store(true, Ordering::Relaxed);
    let (hashings, alive) = watch.await.unwrap();

    let count = |wanted: fn(&Fate) -> bool| fates.iter().filter(|fate| wanted(fate)).count();
    let (within, left) = (count(|f| *f == Fate::In), count(|f| *f == Fate::Left));
    let busy = fates.iter().filter_map(|f| if let Fate::Busy(after) = f { Some(*after) } else { None }).max();
    let peak = api.memory_kib("VmHWM").zip(baseline).map(|(peak, base)| peak.saturating_sub(base) / 1_024);
    let most = hashings.iter().copied().fold(0.0, f64::max);
    let p99 = alive[alive.len() * 99 / 100];
    println!(
        "{LOGINS} logins: {within} in, {left} left, the rest busy after {busy:?} at most; at most {most} hashings; \
         {peak:?} MiB more than before; /livez p50 {:?}, p99 {p99:?}",
        alive[alive.len() / 2]
    );
    assert!(within > 0 && left > 0, "{fates:?}");
    // On a quick machine all that stay may get their turn within two seconds; on none a refusal takes long.
    assert!(
        busy.is_none_or(|after| after < if in_full() { Duration::from_millis(2_500) } else { S(8) }),
        "{busy:?}"
    );
    assert!(hashings.iter().all(|n| *n <= TURNS.parse().unwrap()), "{hashings:?}");
    assert!(most > 0.0, "the gauge works: {hashings:?}");
    assert!(peak.is_none_or(|mib| mib < 150), "{peak:?} MiB");
    let quick = if in_full() { Duration::from_millis(50) } else { S(2) };
    assert!(p99 < quick, "/livez: {p99:?}");

    eventually("every turn is given back", S(10), async || {
        metric(port, "password_hashings_running", "").await == 0.0
    })
    .await;
    for _ in 0..4 {
        let answer = client.post(format!("{url}/v1/auth/login")).json(&account).send().await.unwrap();
        assert_eq!(answer.status(), 200, "as ever");
    }
    assert!(api.is_running(), "{}", api.output());
}
