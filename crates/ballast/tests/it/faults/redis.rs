//! Redis is killed, paused, slow, or answers errors.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use test_support::{FaultProxy, Mode, OwnServices};

use super::{ADMITTED, MS, S, Stand, load::Load, load::Samples, redis_at, redis_server::RedisServer, tell};
use crate::support::{TestApp, eventually, in_full, metric};

/// Under `cargo xtask abuse` the figures count; beside other tests a machine does much else meanwhile.
fn bound(in_full_ms: u64, usual_ms: u64) -> Duration {
    MS(if in_full() { in_full_ms } else { usual_ms })
}

fn rate() -> u32 {
    if in_full() { 200 } else { 100 }
}

async fn decided_by(stand: &Stand, source: &str) -> f64 {
    metric(stand.port, "admission_total", &format!("source=\"{source}\"")).await
}

/// Waits until decisions come from this source; how long that took.
async fn until_decided_by(stand: &Stand, source: &str, patience: Duration) -> Duration {
    let (started, before) = (Instant::now(), decided_by(stand, source).await);
    eventually(&format!("{source} decides"), patience, async || {
        assert_eq!(stand.status(ADMITTED).await, 200);
        decided_by(stand, source).await > before
    })
    .await;
    started.elapsed()
}

/// Asserts what must hold whatever Redis does: nobody is refused, and the waits are short.
/// `later_ms` is what the case allows the 99th percentile once the breaker is open, where the figures count.
fn nobody_noticed(what: &str, load: &Samples, fault: Instant, end: Instant, later_ms: u64) {
    assert_eq!(load.statuses().keys().copied().collect::<Vec<_>>(), [200], "{what}: {:?}", load.statuses());
    let before = load.between(fault.checked_sub(S(2)).unwrap(), fault).percentile(99);
    let first = load.between(fault, fault + S(1)).percentile(99);
    let later = load.between(fault + MS(1_500), end).percentile(99);
    let median = load.between(fault + MS(1_500), end).percentile(50);
    eprintln!(
        "{what}, {} requests: p99 before {before:?}, in the first second {first:?}, later {later:?} (p50 {median:?})",
        load.len()
    );
    assert!(first <= before + bound(300, 1_500), "{what}: the first second {first:?}, before {before:?}");
    assert!(later <= before + bound(later_ms, 1_000), "{what}: later {later:?}, before {before:?}");
    assert!(median <= before + bound(5, 200), "{what}: later {median:?} at the median, before {before:?}");
}

/// One line for each change, however many requests saw it. A machine that is too busy for Redis to answer in time makes more
/// changes, but no change without its line.
fn told_once_each(stand: &Stand) {
    let told = stand.logged("breaker ");
    for (i, line) in told.iter().enumerate() {
        let wanted = ["breaker opened", "breaker closed"][i % 2];
        assert_eq!(line["message"], wanted, "{told:?}");
    }
    assert!(told.len() >= 2 && told.len().is_multiple_of(2), "{told:?}");
    assert!(!in_full() || told.len() == 2, "{told:?}");
}

/// Case R5.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_killed_under_load_is_not_noticed_and_counts_again_soon_after_its_restart() {
    let (services, mut redis) = tokio::join!(OwnServices::start(), RedisServer::start());
    let stand = Stand::over(services, &[("REDIS_URL", &redis.url())]).await;
    until_decided_by(&stand, "redis", S(10)).await;
    let load = Load::start(&stand, ADMITTED, rate());
    tokio::time::sleep(MS(2_200)).await;
    let killed = Instant::now();
    redis.kill();
    let local = until_decided_by(&stand, "local", S(5)).await;
    tokio::time::sleep(S(if in_full() { 15 } else { 4 })).await;
    let started = Instant::now();
    redis.start_again(&[]);
    redis.answers().await;
    let back = until_decided_by(&stand, "redis", S(15)).await;
    eprintln!("local limits after {local:?}, Redis counts {back:?} after it answers");
    assert!(local < bound(1_000, 5_000), "{local:?}");
    assert!(back < bound(5_000, 15_000), "{back:?}");
    nobody_noticed("Redis killed", &load.end().await, killed, started, 50);
    told_once_each(&stand);
}

/// Case R6.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_paused_under_load_is_not_waited_for_and_counts_again_soon_after_it_goes_on() {
    let (services, redis) = tokio::join!(OwnServices::start(), RedisServer::start());
    let stand = Stand::over(services, &[("REDIS_URL", &redis.url())]).await;
    until_decided_by(&stand, "redis", S(10)).await;
    let load = Load::start(&stand, ADMITTED, rate());
    tokio::time::sleep(MS(2_200)).await;
    let paused = Instant::now();
    redis.signal(Signal::SIGSTOP);
    let until = paused + S(if in_full() { 30 } else { 6 });
    let mut waiting = 0.0_f64;
    while Instant::now() < until {
        tokio::time::sleep(MS(100)).await;
        if paused.elapsed() > MS(1_500) {
            waiting = waiting.max(metric(stand.port, "redis_calls_in_flight", "").await);
        }
    }
    let continued = Instant::now();
    redis.signal(Signal::SIGCONT);
    let back = until_decided_by(&stand, "redis", S(15)).await;
    eprintln!("at most {waiting} calls waited for Redis at a time; it counts {back:?} after it goes on");
    // A probe of the breaker, and another one of the health check.
    assert!(waiting <= 4.0, "{waiting} calls wait for a Redis that is known to be out");
    assert!(back < bound(10_000, 15_000), "{back:?}");
    nobody_noticed("Redis paused", &load.end().await, paused, continued, 5);
    told_once_each(&stand);
}

/// Cases R5 to R7: what two replicas let through together while Redis is out is the limit once, not twice.
#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_without_redis_let_no_more_than_the_limit_through() {
    let (services, redis) = tokio::join!(OwnServices::start(), RedisServer::start());
    let (proxy, url) = FaultProxy::in_front_of(&redis.url()).await;
    let more = [("REDIS_URL", url.as_str()), ("API_REPLICAS", "2"), ("RATE_LIMIT_REFRESH", "10/1h")];
    let stand = Stand::over(services, &more).await;
    let (_second, port) = stand.replica(&more).await;
    proxy.set(Mode::Refuse);
    until_decided_by(&stand, "local", S(5)).await;
    let mut passed = 0;
    for i in 0..40 {
        let port = [stand.port, port][i % 2];
        let url = format!("http://127.0.0.1:{port}/v1/auth/refresh");
        let body = serde_json::json!({ "refresh_token": "no such token" });
        let answer = stand.client.post(url).json(&body).send().await.unwrap();
        match answer.status().as_u16() {
            401 => passed += 1,
            status => assert_eq!(status, 429),
        }
    }
    assert_eq!(passed, 10);
    for port in [stand.port, port] {
        let labels = "policy=\"refresh\",outcome=\"limited\",source=\"local\"";
        assert_eq!(metric(port, "rate_limit_total", labels).await as u64, 15, "{port}");
    }
}

/// Case R7.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_redis_answers_the_local_limits_hold_and_the_shared_ones_when_it_is_well_again() {
    let (services, redis) = tokio::join!(OwnServices::start(), RedisServer::start());
    let (proxy, url) = FaultProxy::in_front_of(&redis.url()).await;
    let stand = Stand::over(services, &[("REDIS_URL", &url)]).await;
    let mut admin = redis_at(&redis.url()).await;
    // For NOAUTH: who is connected already need not say who it is, so these connections go.
    let faults: [(&str, &[&str], &str); 4] = [
        ("READONLY", &["REPLICAOF 127.0.0.1 1"], "REPLICAOF NO ONE"),
        ("OOM", &["CONFIG SET maxmemory 1"], "CONFIG SET maxmemory 0"),
        (
            "NOAUTH",
            &["CONFIG SET requirepass secret", "CLIENT KILL TYPE normal"],
            "CONFIG SET requirepass \"\"",
        ),
        ("MISCONF", &["CONFIG SET save 1000+1000", "BGSAVE"], "CONFIG SET save \"\""),
    ];
    for (name, begin, end) in faults {
        if name == "MISCONF" {
            redis.lose_directory();
        }
        for command in begin {
            tell(&mut admin, command).await;
        }
        held_by_local_limits(&stand, name).await;
        tell(&mut admin, end).await;
        until_decided_by(&stand, "redis", S(15)).await;
    }

    proxy.set(Mode::Latency(MS(400)));
    held_by_local_limits(&stand, "400 ms in each direction").await;
    proxy.set(Mode::Pass);
    until_decided_by(&stand, "redis", S(15)).await;

    // Flushed scripts heal at once: nothing is decided here.
    let local = decided_by(&stand, "local").await;
    for _ in 0..10 {
        tell(&mut admin, "SCRIPT FLUSH").await;
        assert_eq!(stand.status(ADMITTED).await, 200);
    }
    assert!((decided_by(&stand, "local").await - local).abs() < 0.5, "a flushed script costs nothing");
}

/// Asserts that requests are admitted, without Redis and without long waits.
async fn held_by_local_limits(stand: &Stand, what: &str) {
    until_decided_by(stand, "local", S(5)).await;
    for _ in 0..10 {
        let (started, local) = (Instant::now(), decided_by(stand, "local").await);
        let answer = stand.get(ADMITTED).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{what}");
        assert!(answer.headers().contains_key("ratelimit"), "{what}: {:?}", answer.headers());
        assert!(started.elapsed() < S(2), "{what}: {:?}", started.elapsed());
        assert!(decided_by(stand, "local").await > local, "{what}");
    }
    let degraded = (200, "degraded".to_owned());
    eventually("health says so", S(10), async || stand.check("redis").await == degraded).await;
    assert_eq!(stand.status("/readyz").await, 200, "{what}");
}

/// Case R7, LOADING: a Redis with much data that comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_still_loads_its_data_is_taken_for_one_that_is_out() {
    let (services, mut redis) = tokio::join!(OwnServices::start(), RedisServer::start());
    let stand = Stand::over(services, &[("REDIS_URL", &redis.url())]).await;
    let mut filling = redis_at(&redis.url()).await;
    let fill = "for i = 1, 20000 do redis.call('SET', 'fill:' .. i, i) end";
    db::redis_client::cmd("EVAL").arg(fill).arg(0).exec_async(&mut filling).await.unwrap();
    tell(&mut filling, "SAVE").await;
    redis.kill();
    until_decided_by(&stand, "local", S(5)).await;
    // 250 us for each key: five seconds.
    redis.start_again(&["--key-load-delay", "250", "--loading-process-events-interval-bytes", "1024"]);
    let mut answers = std::collections::BTreeSet::new();
    eventually("it says that it loads", S(10), async || {
        assert_eq!(stand.status(ADMITTED).await, 200);
        let client = db::redis_client::Client::open(redis.url()).unwrap();
        if let Ok(mut connection) = client.get_multiplexed_async_connection().await {
            let get = db::redis_client::cmd("GET").arg("fill:1").query_async::<String>(&mut connection).await;
            answers.extend(get.err().and_then(|error| error.code().map(ToOwned::to_owned)));
        }
        answers.contains("LOADING")
    })
    .await;
    held_by_local_limits(&stand, "LOADING").await;
    until_decided_by(&stand, "redis", S(30)).await;
}

/// Case A8, for a Redis that is well but has forgotten: another one took its place, or it was full and gave the mark up.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_a_replaced_or_full_redis_forgot_to_have_ended_is_ended_again() {
    let mut redis = RedisServer::start().await;
    // A mark outlives the tokens of before, too.
    let app = TestApp::with(&[("REDIS_URL", &redis.url()), ("ACCESS_TOKEN_TTL", "5m")]).await;
    let user = app.user().await;
    user.logout(&user.refresh_token).await.expect(204);
    user.get("/v1/me").await.problem(401, "revoked");
    let mut admin = redis_at(&redis.url()).await;
    let mark = format!("*session:{}*", user.session_id());
    let marks: Vec<String> = db::redis_client::cmd("KEYS").arg(&mark).query_async(&mut admin).await.unwrap();
    let [mark] = marks.as_slice() else { panic!("{marks:?}") };
    let left: u64 = db::redis_client::cmd("TTL").arg(mark).query_async(&mut admin).await.unwrap();
    assert!(left > 3_600, "longer than any token lives, whatever it was configured to: {left} s");

    // Quicker than any call of ours could fail, as far as a test can be.
    redis.kill();
    redis.start_again(&[]);
    redis.answers().await;
    eventually("dead again after the replacement", S(15), async || user.get("/v1/me").await.status == 401)
        .await;

    let mut admin = redis_at(&redis.url()).await;
    // Whatever key goes, the mark's turn comes: it need not be the oldest one, which under LRU it soon would be no more.
    tell(&mut admin, "CONFIG SET maxmemory-policy allkeys-random").await;
    tell(&mut admin, "CONFIG SET maxmemory 3000000").await;
    let junk = "x".repeat(100_000);
    let mut forgotten = false;
    for n in 0..2_000 {
        let _: () = db::redis_client::cmd("SET").arg(n).arg(&junk).query_async(&mut admin).await.unwrap();
        let there: bool = db::redis_client::cmd("EXISTS").arg(mark).query_async(&mut admin).await.unwrap();
        forgotten = !there;
        if forgotten {
            break;
        }
    }
    assert!(forgotten, "2,000 writes into a full Redis leave the mark");
    tell(&mut admin, "CONFIG SET maxmemory 0").await;
    eventually("dead again after the eviction", S(15), async || user.get("/v1/me").await.status == 401).await;
}
