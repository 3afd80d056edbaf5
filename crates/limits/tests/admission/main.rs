//! The admission script on a real Redis, and the local limits without one.
#![expect(clippy::unwrap_used, reason = "tests")]

mod model;

use std::time::Duration;

use config::{ApiConfig, MapVars, Rate};
use db::Redis;
use futures_util::future::join_all;
use limits::{
    Admission, Admitted, Algorithm, Decision, Limited, Limiter, Overrides, Per, Permit, Policies, Policy,
    Settlement,
};
use test_support::{FaultProxy, Mode, TestRedis, test_redis};

fn policies() -> Policies {
    let vars = MapVars::from([
        ("DATABASE_URL", "postgres://u@h/d"),
        ("REDIS_URL", "redis://h"),
        ("ENGINE_URL", "http://h"),
    ]);
    Policies::from_config(&ApiConfig::from_vars(&vars).unwrap().limits)
}

fn policy(name: &'static str, algorithm: Algorithm, rate: &str) -> Policy {
    Policy { name, algorithm, per: Per::Caller, rate: rate.parse::<Rate>().unwrap() }
}

fn limiter_at(url: &str, prefix: &str) -> Limiter {
    let config = config::RedisConfig { url: url.into(), key_prefix: prefix.to_owned(), pool_size: 8 };
    Limiter::new(Redis::from_config(&config).unwrap(), policies(), 2)
}

fn limiter(redis: &TestRedis) -> Limiter {
    limiter_at(&redis.url, &redis.prefix)
}

fn charge(policy: &Policy, subject: &str, cost: u64) -> Admission {
    let mut admission = Admission::default();
    admission.charge(policy.charge(subject, cost));
    admission
}

fn give_back(permit: Permit) -> Settlement {
    Settlement { permit: Some(permit), ..Settlement::default() }
}

fn admitted(decision: &Decision) -> bool {
    matches!(decision, Decision::Admitted(a) if !a.local)
}

fn limited(decision: Decision) -> Limited {
    match decision {
        Decision::Limited(limited) => limited,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_window_admits_exactly_its_limit_over_three_replicas_and_500_parallel_requests() {
    let redis = test_redis().await;
    let replicas = [limiter(&redis), limiter(&redis), limiter(&redis)];
    let login = policy("login", Algorithm::SlidingWindow, "5/15m");
    let admission = charge(&login, "203.0.113.7", 1);
    let decisions = join_all((0..500).map(|i| replicas[i % 3].admit(&admission))).await;
    assert_eq!(decisions.iter().filter(|d| admitted(d)).count(), 5);
    let refused = limited(replicas[0].admit(&admission).await);
    let wait = refused.retry_after.unwrap();
    assert!(wait > Duration::from_secs(880) && wait <= Duration::from_secs(900), "{wait:?}");
    assert!(
        admitted(&replicas[1].admit(&charge(&login, "203.0.113.8", 1)).await),
        "another client is not affected"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn gcra_admits_its_burst_and_then_one_per_interval() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let rate = policy("global", Algorithm::Gcra, "10/2s");
    let admission = charge(&rate, "u", 1);
    let first = join_all((0..50).map(|_| limiter.admit(&admission))).await;
    let burst = first.iter().filter(|d| admitted(d)).count();
    assert!((10..=12).contains(&burst), "{burst}");
    let wait = limited(limiter.admit(&admission).await).retry_after.unwrap();
    assert!(wait <= Duration::from_millis(200), "{wait:?}");
    tokio::time::sleep(wait + Duration::from_millis(2)).await;
    assert!(admitted(&limiter.admit(&admission).await), "waiting for Retry-After admits");
}

#[tokio::test]
async fn a_refusal_by_one_policy_costs_nothing_on_the_others() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let wide = policy("global", Algorithm::Gcra, "100/1h");
    let narrow = policy("custom", Algorithm::SlidingWindow, "1/1h");
    let mut both = Admission::default();
    both.charge(wide.charge("u", 1)).charge(narrow.charge("u", 1));
    assert!(admitted(&limiter.admit(&both).await));
    for _ in 0..20 {
        assert_eq!(limited(limiter.admit(&both).await).policy, "custom");
    }
    let Decision::Admitted(state) = limiter.admit(&charge(&wide, "u", 0)).await else {
        panic!("cost 0 asks")
    };
    assert_eq!(state.states[0].remaining, 99);
}

#[tokio::test]
async fn remaining_counts_down_and_a_cost_above_the_limit_never_passes() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    for algorithm in [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
        let p = policy("ai-tokens", algorithm, "1000/1h");
        let Decision::Admitted(a) = limiter.admit(&charge(&p, &format!("{algorithm:?}"), 300)).await else {
            panic!("{algorithm:?}")
        };
        assert_eq!((a.states[0].limit, a.states[0].remaining), (1000, 700), "{algorithm:?}");
        let never = limited(limiter.admit(&charge(&p, &format!("{algorithm:?}"), 1001)).await);
        assert_eq!(never.retry_after, None, "{algorithm:?}");
        let later = limited(limiter.admit(&charge(&p, &format!("{algorithm:?}"), 701)).await);
        assert!(later.retry_after.is_some(), "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_large_limit_holds_for_small_costs_too() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    for (rate, cost) in
        [("1000000/1m", 2_000), ("100000/1m", 160), ("10000/1m", 10), ("1000000000/1d", 1_000_000)]
    {
        let p = policy("ai-tokens", Algorithm::Gcra, rate);
        let subject = format!("{rate} {cost}");
        let started = std::time::Instant::now();
        let mut passed = 0;
        for _ in 0..p.rate.limit / cost + 200 {
            passed += u64::from(admitted(&limiter.admit(&charge(&p, &subject, cost)).await));
        }
        let refilled = p.rate.limit as f64 * started.elapsed().as_secs_f64() / p.rate.period.as_secs_f64();
        let most = p.rate.limit + refilled as u64 + cost;
        assert!(
            (p.rate.limit..=most).contains(&(passed * cost)),
            "{rate}: {} of at most {most}",
            passed * cost
        );
        let wait = limited(limiter.admit(&charge(&p, &subject, p.rate.limit / 2)).await).retry_after.unwrap();
        assert!(wait > p.rate.period / 4, "{rate}: the wait is for what is asked: {wait:?}");
    }
}

#[tokio::test]
async fn settling_gives_back_what_was_not_used_and_takes_what_was_used_in_addition() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    for algorithm in [Algorithm::Gcra, Algorithm::FixedWindow] {
        let p = policy("ai-tokens", algorithm, "1000/1h");
        let subject = format!("{algorithm:?}");
        let admission = charge(&p, &subject, 800);
        assert!(admitted(&limiter.admit(&admission).await));
        let taken = p.charge(subject.as_str(), 800);
        let correct = |by| Settlement { corrections: vec![(taken.clone(), by)], ..Settlement::default() };
        limiter.settle(correct(-700)).await;
        let Decision::Admitted(a) = limiter.admit(&charge(&p, &subject, 0)).await else {
            panic!("{algorithm:?}")
        };
        assert_eq!(a.states[0].remaining, 900, "{algorithm:?}");
        limiter.settle(correct(850)).await;
        let Decision::Admitted(a) = limiter.admit(&charge(&p, &subject, 0)).await else {
            panic!("{algorithm:?}")
        };
        assert!((50..=51).contains(&a.states[0].remaining), "{algorithm:?}: {:?}", a.states[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_are_counted_over_replicas_given_back_and_end_by_themselves() {
    let redis = test_redis().await;
    let (one, two) = (limiter(&redis), limiter(&redis));
    let permit = |id: &str| policy("concurrent-streams", Algorithm::Permits, "2/400ms").permit("u", id);
    let ask = |id: &str| {
        let mut admission = Admission::default();
        admission.permit(permit(id));
        admission
    };
    assert!(admitted(&one.admit(&ask("a")).await) && admitted(&two.admit(&ask("b")).await));
    assert_eq!(limited(one.admit(&ask("c")).await).policy, "concurrent-streams");
    two.settle(give_back(permit("a"))).await;
    assert!(admitted(&one.admit(&ask("c")).await), "a permit that was given back is free on every replica");
    tokio::time::sleep(Duration::from_millis(250)).await;
    one.renew(&permit("c")).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(admitted(&one.admit(&ask("d")).await), "the lease of b ended: its holder crashed");
    assert_eq!(limited(one.admit(&ask("e")).await).policy, "concurrent-streams", "c was renewed");
}

#[tokio::test]
async fn a_revoked_session_is_refused_and_a_later_one_is_not() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    limiter.revoke("user:1", 1_000, Duration::from_secs(60)).await.unwrap();
    let ask = |issued_at| {
        let mut admission = Admission::default();
        admission.unless_revoked("session:9", issued_at).unless_revoked("user:1", issued_at);
        admission
    };
    assert!(matches!(limiter.admit(&ask(1_000)).await, Decision::Revoked));
    assert!(admitted(&limiter.admit(&ask(1_001)).await));
}

#[tokio::test]
async fn the_record_of_a_key_is_compared_in_the_same_round_trip_and_nothing_is_taken_before_it_is_known() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let p = policy("global", Algorithm::SlidingWindow, "1/1h");
    let ask = |etag: &str| {
        let mut admission = Admission::default();
        admission.with_record("pk", etag).charge(p.charge("u", 1));
        admission
    };
    assert!(matches!(limiter.admit(&ask("")).await, Decision::RecordMissing));
    limiter.add_record("pk", "e1|{\"user\":1}", Duration::from_secs(60)).await.unwrap();
    limiter.add_record("pk", "e0|{}", Duration::from_secs(60)).await.unwrap();
    for stale in ["", "e", "e0"] {
        let Decision::RecordChanged(record) = limiter.admit(&ask(stale)).await else { panic!("{stale}") };
        assert_eq!(record, "e1|{\"user\":1}");
    }
    assert!(admitted(&limiter.admit(&ask("e1")).await), "only now the one unit is taken");
    limiter.replace_record("pk", "e2|{}", Duration::from_secs(60)).await.unwrap();
    assert!(matches!(limiter.admit(&ask("e1")).await, Decision::RecordChanged(r) if r == "e2|{}"));
}

#[tokio::test]
async fn a_flushed_script_cache_heals_within_the_same_request() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let p = policy("global", Algorithm::Gcra, "10/1m");
    assert!(admitted(&limiter.admit(&charge(&p, "u", 1)).await));
    let mut connection = redis.connection().await;
    db::redis_client::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut connection).await.unwrap();
    assert!(admitted(&limiter.admit(&charge(&p, "u", 1)).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_script_cache_heals_for_many_at_once_and_for_the_probe_of_an_open_breaker() {
    let redis = test_redis().await;
    let (proxy, url) = FaultProxy::in_front_of(&redis.url).await;
    let limiter = limiter_at(&url, &redis.prefix);
    let rate = policy("global", Algorithm::Gcra, "10000/1h");
    let admission = charge(&rate, "u", 1);
    assert!(admitted(&limiter.admit(&admission).await));
    let flush = async || {
        let mut c = redis.connection().await;
        db::redis_client::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut c).await.unwrap();
    };
    flush().await;
    let decisions = join_all((0..50).map(|_| limiter.admit(&admission))).await;
    assert!(decisions.iter().all(admitted), "{decisions:?}");
    proxy.set(Mode::Refuse);
    join_all((0..50).map(|_| limiter.admit(&admission))).await;
    proxy.set(Mode::Pass);
    flush().await;
    // Nothing but admissions, so one of them is the probe.
    let begun = std::time::Instant::now();
    while !join_all((0..20).map(|_| limiter.admit(&admission))).await.iter().any(admitted) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it stays with the local limits");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn every_key_expires() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let mut admission = Admission::default();
    for (name, algorithm) in
        [("a", Algorithm::Gcra), ("b", Algorithm::SlidingWindow), ("c", Algorithm::FixedWindow)]
    {
        admission.charge(policy(name, algorithm, "10/1m").charge("u", 1));
    }
    admission.permit(policy("concurrent-streams", Algorithm::Permits, "1/60s").permit("u", "x"));
    assert!(admitted(&limiter.admit(&admission).await));
    let mut c = redis.connection().await;
    let pattern = format!("{}*", redis.prefix);
    let keys: Vec<String> = db::redis_client::cmd("KEYS").arg(pattern).query_async(&mut c).await.unwrap();
    assert_eq!(keys.len(), 4);
    for key in keys {
        let ttl: i64 = db::redis_client::cmd("PTTL").arg(&key).query_async(&mut c).await.unwrap();
        assert!(ttl > 0 && ttl <= 60_002, "{key}: {ttl}");
    }
}

#[tokio::test]
async fn a_value_of_a_wrong_type_falls_back_to_the_local_limits() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let p = policy("global", Algorithm::Gcra, "10/1m");
    let mut c = redis.connection().await;
    let key = format!("{}v1:rl:global:u", redis.prefix);
    db::redis_client::cmd("LPUSH").arg(&key).arg("x").query_async::<()>(&mut c).await.unwrap();
    assert!(matches!(limiter.admit(&charge(&p, "u", 1)).await, Decision::Admitted(a) if a.local));
}

#[tokio::test]
async fn without_redis_each_replica_allows_its_share_and_the_breaker_answers_at_once() {
    let limiter = limiter_at("redis://127.0.0.1:1", "x:");
    let p = policy("login", Algorithm::SlidingWindow, "6/15m");
    let admission = charge(&p, "u", 1);
    let mut passed = 0;
    for _ in 0..10 {
        match limiter.admit(&admission).await {
            Decision::Admitted(a) => {
                assert!(a.local);
                passed += 1;
            }
            Decision::Limited(l) => assert!(l.local && l.retry_after.is_some()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(passed, 3, "half of six: there are two replicas");
    let started = std::time::Instant::now();
    for _ in 0..100 {
        limiter.admit(&admission).await;
    }
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
}

/// Moves what a bucket remembers by so many microseconds: into the past as if time had passed, into the future as if Redis's
/// clock had been set back.
async fn shift(redis: &TestRedis, key: &str, micros: i64) {
    const SCRIPT: &str = r"
        local by = tonumber(ARGV[1])
        local kind = redis.call('TYPE', KEYS[1]).ok
        if kind == 'string' then
            local level, since = string.match(redis.call('GET', KEYS[1]), '^([%d.]+):(%d+)$')
            redis.call('SET', KEYS[1], string.format('%s:%.0f', level, tonumber(since) + by), 'KEEPTTL')
        elseif kind == 'zset' then
            local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
            for i = 1, #all, 2 do redis.call('ZADD', KEYS[1], string.format('%.0f', tonumber(all[i+1]) + by), all[i]) end
        elseif kind == 'hash' then
            redis.call('HINCRBY', KEYS[1], 'w', by / tonumber(ARGV[2]))
        end";
    let mut c = redis.connection().await;
    let key = format!("{}v1:{key}", redis.prefix);
    let hour = 3_600_000_000_u64;
    db::redis_client::Script::new(SCRIPT)
        .key(key)
        .arg(micros)
        .arg(hour)
        .invoke_async::<()>(&mut c)
        .await
        .unwrap();
}

/// Case R4. What Redis remembers lies in its future after its clock was set back.
#[tokio::test]
async fn after_redis_clock_steps_back_the_count_stays_and_nobody_waits_longer_than_a_period() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    for algorithm in [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow] {
        for hours in [1, 20] {
            let p = policy("login", algorithm, "5/1h");
            let subject = format!("{algorithm:?}{hours}");
            for _ in 0..5 {
                assert!(admitted(&limiter.admit(&charge(&p, &subject, 1)).await));
            }
            shift(&redis, &format!("rl:login:{subject}"), hours * 3_600_000_000).await;
            for _ in 0..3 {
                let refused = limited(limiter.admit(&charge(&p, &subject, 1)).await);
                let wait = refused.retry_after.unwrap();
                assert!(wait <= p.rate.period, "{subject}: {wait:?}");
            }
            // The refusal has put the bucket back into the present: from here an hour is an hour.
            shift(&redis, &format!("rl:login:{subject}"), -3_600_000_000).await;
            assert!(admitted(&limiter.admit(&charge(&p, &subject, 1)).await), "{subject}");
        }
    }
    let streams = policy("concurrent-streams", Algorithm::Permits, "1/60s");
    let mut ask = Admission::default();
    ask.permit(streams.permit("u", "a"));
    assert!(admitted(&limiter.admit(&ask).await));
    shift(&redis, "sem:u", 3_600_000_000).await;
    ask.permit(streams.permit("u", "b"));
    limited(limiter.admit(&ask).await);
    shift(&redis, "sem:u", -60_000_000).await;
    assert!(admitted(&limiter.admit(&ask).await), "the lease of a holder that died ends in its time");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_permit_is_enough_for_requests_one_after_the_other() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let streams = policy("concurrent-streams", Algorithm::Permits, "1/60s");
    let mut returns = tokio::task::JoinSet::new();
    for n in 0..200 {
        let permit = streams.permit("u", n.to_string());
        let mut ask = Admission::default();
        ask.permit(permit.clone());
        assert!(admitted(&limiter.admit(&ask).await), "{n}");
        // Told to Redis beside the next request.
        let settled = limiter.settle(give_back(permit));
        returns.spawn(settled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_redis_did_not_hear_returned_is_returned_again_and_nobody_waits_for_that() {
    let redis = test_redis().await;
    let (proxy, url) = FaultProxy::in_front_of(&redis.url).await;
    let limiter = limiter_at(&url, &redis.prefix);
    let other = self::limiter(&redis);
    let streams = policy("concurrent-streams", Algorithm::Permits, "1/60s");
    let mut ask = Admission::default();
    ask.permit(streams.permit("u", "a"));
    assert!(admitted(&limiter.admit(&ask).await));
    proxy.set(Mode::Refuse);
    let begun = std::time::Instant::now();
    limiter.settle(give_back(streams.permit("u", "a"))).await;
    // Before the first return that comes later, which is after half a second.
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    ask.permit(streams.permit("u", "b"));
    limited(other.admit(&ask).await);
    proxy.set(Mode::Pass);
    while !other.look(&streams, "u").await.is_ok_and(|state| state.remaining == 1) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not free again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_permit_that_redis_lost_is_noted_again_and_one_that_was_given_back_is_not() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let streams = policy("concurrent-streams", Algorithm::Permits, "1/60s");
    let (held, other) = (streams.permit("u", "held"), streams.permit("u", "other"));
    let mut ask = Admission::default();
    ask.permit(held.clone());
    assert!(admitted(&limiter.admit(&ask).await));
    let mut c = redis.connection().await;
    let key = format!("{}v1:sem:u", redis.prefix);
    db::redis_client::cmd("DEL").arg(&key).query_async::<()>(&mut c).await.unwrap();
    limiter.renew(&held).await;
    limiter.reset(&streams, "u").await.unwrap();
    limiter.renew(&held).await;
    ask.permit(other);
    limited(limiter.admit(&ask).await);
    limiter.settle(give_back(held.clone())).await;
    limiter.renew(&held).await;
    assert!(admitted(&limiter.admit(&ask).await));
}

#[tokio::test]
async fn what_was_taken_locally_is_not_given_back_in_redis() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let p = policy("ai-tokens", Algorithm::Gcra, "1000/1h");
    assert!(admitted(&limiter.admit(&charge(&p, "u", 900)).await));
    let corrections = vec![(p.charge("u", 900), -900)];
    limiter.settle(Settlement { corrections, local: true, ..Settlement::default() }).await;
    assert_eq!(limiter.look(&p, "u").await.unwrap().remaining, 100);
}

#[tokio::test]
async fn every_kind_of_bucket_can_be_looked_at_and_reset() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    for algorithm in [Algorithm::Gcra, Algorithm::SlidingWindow, Algorithm::FixedWindow, Algorithm::Permits] {
        let p = policy("any", algorithm, "2/1h");
        let subject = format!("{algorithm:?}");
        for n in 0..3 {
            let mut ask = Admission::default();
            match algorithm {
                Algorithm::Permits => ask.permit(p.permit(subject.as_str(), n.to_string())),
                _ => ask.charge(p.charge(subject.as_str(), 1)),
            };
            assert_eq!(admitted(&limiter.admit(&ask).await), n < 2, "{subject} {n}");
        }
        for _ in 0..2 {
            let state = limiter.look(&p, &subject).await.unwrap();
            assert_eq!((state.limit, state.remaining), (2, 0), "{subject}: looking takes nothing");
        }
        assert!(limiter.reset(&p, &subject).await.unwrap(), "{subject}");
        assert!(!limiter.reset(&p, &subject).await.unwrap(), "{subject}");
        assert_eq!(limiter.look(&p, &subject).await.unwrap().remaining, 2, "{subject}");
    }
    let out = limiter_at("redis://127.0.0.1:1", "x:");
    assert!(
        out.look(&policy("any", Algorithm::Gcra, "2/1h"), "u").await.is_err(),
        "no guess of a local limit"
    );
}

#[test]
fn an_api_keys_own_limits_are_read_and_nonsense_is_told() {
    let policies = policies();
    let (own, problems) = Overrides::parse(
        &policies,
        [("global", "7/1h"), ("concurrent-streams", "3"), ("user-jobs", " 1/1d ")],
    );
    assert_eq!(problems, []);
    assert_eq!(own.apply(&policies.global).unwrap().limit_text(), "7/1h");
    assert_eq!(own.apply(&policies.concurrent_streams).unwrap().permit("u", "a").limit, 3);
    assert_eq!(own.apply(&policies.ai_tokens), None, "the rest is as usual");
    for (name, limit, told) in [
        ("global", "0/1h", "between 1 and"),
        ("global", "", "LIMIT/PERIOD"),
        ("global", "10", "LIMIT/PERIOD"),
        ("global", "10/0s", "between 1ms"),
        ("global", "-1/1h", "LIMIT/PERIOD"),
        ("global", "10/400d", "31d"),
        ("concurrent-streams", "3/1h", "from 1 to"),
        ("concurrent-streams", "0", "from 1 to"),
        ("login", "10/1h", "there are: global"),
        ("globl", "10/1h", "there are: global"),
    ] {
        let (own, problems) = Overrides::parse(&policies, [(name, limit)]);
        assert_eq!(own, Overrides::default(), "{name} {limit}");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].policy == name && problems[0].message.contains(told), "{}", problems[0]);
    }
}
