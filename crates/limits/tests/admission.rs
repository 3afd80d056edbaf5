//! The admission script on a real Redis, and the local limits without one.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use config::{ApiConfig, MapVars, Rate};
use db::Redis;
use futures_util::future::join_all;
use limits::{Admission, Algorithm, Decision, Limited, Limiter, Permit, Policies, Policy, Settlement};
use test_support::{TestRedis, test_redis};

fn policies() -> Policies {
    let vars = MapVars::from([
        ("DATABASE_URL", "postgres://u@h/d"),
        ("REDIS_URL", "redis://h"),
        ("ENGINE_URL", "http://h"),
    ]);
    Policies::from_config(&ApiConfig::from_vars(&vars).unwrap().limits)
}

fn policy(name: &'static str, algorithm: Algorithm, rate: &str) -> Policy {
    Policy { name, algorithm, rate: rate.parse::<Rate>().unwrap() }
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
    admission.charge(policy, subject, cost);
    admission
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
    both.charge(&wide, "u", 1).charge(&narrow, "u", 1);
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
        let taken = limits::Charge { policy: p.clone(), subject: subject.clone(), cost: 800 };
        limiter.settle(&Settlement { corrections: vec![(taken.clone(), -700)], permit: None }).await;
        let Decision::Admitted(a) = limiter.admit(&charge(&p, &subject, 0)).await else {
            panic!("{algorithm:?}")
        };
        assert_eq!(a.states[0].remaining, 900, "{algorithm:?}");
        limiter.settle(&Settlement { corrections: vec![(taken, 850)], permit: None }).await;
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
    let permit =
        |id: &str| Permit { subject: "u".into(), id: id.into(), limit: 2, lease: Duration::from_millis(400) };
    let ask = |id: &str| {
        let mut admission = Admission::default();
        admission.permit(permit(id));
        admission
    };
    assert!(admitted(&one.admit(&ask("a")).await) && admitted(&two.admit(&ask("b")).await));
    assert_eq!(limited(one.admit(&ask("c")).await).policy, "concurrent-streams");
    two.settle(&Settlement { corrections: vec![], permit: Some(permit("a")) }).await;
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
        admission.with_record("pk", etag).charge(&p, "u", 1);
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

#[tokio::test]
async fn every_key_expires() {
    let redis = test_redis().await;
    let limiter = limiter(&redis);
    let mut admission = Admission::default();
    for (name, algorithm) in
        [("a", Algorithm::Gcra), ("b", Algorithm::SlidingWindow), ("c", Algorithm::FixedWindow)]
    {
        admission.charge(&policy(name, algorithm, "10/1m"), "u", 1);
    }
    admission.permit(Permit {
        subject: "u".into(),
        id: "x".into(),
        limit: 1,
        lease: Duration::from_secs(60),
    });
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

mod model {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        /// Whatever the costs, a strict window never holds more than its limit, and a refusal is always justified.
        #[test]
        fn a_strict_window_is_never_over_its_limit(limit in 1_u64..20, costs in prop::collection::vec(1_u64..6, 1..30)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let redis = test_redis().await;
                let limiter = limiter(&redis);
                let p = policy("custom", Algorithm::SlidingWindow, &format!("{limit}/1h"));
                let mut used = 0;
                for cost in costs {
                    let passed = admitted(&limiter.admit(&charge(&p, "u", cost)).await);
                    prop_assert_eq!(passed, used + cost <= limit);
                    used += if passed { cost } else { 0 };
                }
                Ok(())
            })?;
        }
    }
}
