//! The scripts against the model in memory, step by step.

use limits::Bucket;
use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3_600_000_000;

#[derive(Debug, Clone)]
enum Step {
    Admit(u64),
    /// Hundredths of the period: much more than what the test itself takes.
    Wait(u64),
    Settle(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u64..6).prop_map(Step::Admit),
        2 => (1_u64..60).prop_map(Step::Wait),
        1 => (-4_i64..4).prop_map(Step::Settle),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Case R1. The scripts decide as the model does, whose own properties are tested with it: what passes, what is left,
    /// and how long to wait. Time passes by moving what Redis remembers into the past.
    #[test]
    fn the_scripts_agree_with_the_model(
        algorithm in prop::sample::select(&[Algorithm::Gcra, Algorithm::SlidingWindow][..]),
        // Divisors of a hundred, so that no decision lies within what the test itself takes.
        limit in prop::sample::select(&[1_u64, 2, 4, 5, 10, 20][..]),
        steps in steps(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let redis = test_redis().await;
            let limiter = limiter(&redis);
            let p = policy("custom", algorithm, &format!("{limit}/1h"));
            let (mut model, mut now) = (Bucket::new(algorithm), 1_000 * HOUR);
            for step in steps {
                match step {
                    Step::Wait(hundredths) => {
                        let micros = hundredths * HOUR / 100;
                        now += micros;
                        shift(&redis, "rl:custom:u", -(micros as i64)).await;
                    }
                    Step::Settle(by) => {
                        let corrections = vec![(p.charge("u", 1), by)];
                        limiter.settle(Settlement { corrections, ..Settlement::default() }).await;
                        model.settle(p.rate, by, now);
                    }
                    Step::Admit(cost) => {
                        let expected = model.check(p.rate, cost, now);
                        if expected.is_ok() {
                            model.take(cost, now);
                        }
                        let left = model.standing(p.rate, now).remaining;
                        match (limiter.admit(&charge(&p, "u", cost)).await, expected) {
                            (Decision::Admitted(Admitted { states, .. }), Ok(())) => {
                                prop_assert_eq!(states[0].remaining, left);
                            }
                            (Decision::Limited(refused), Err(wait)) => {
                                prop_assert_eq!(refused.states[0].remaining, left);
                                prop_assert_eq!(refused.retry_after.is_some(), wait.is_some());
                                let (theirs, ours) = (refused.retry_after.unwrap_or_default(), wait.unwrap_or_default());
                                prop_assert!(theirs <= ours + Duration::from_millis(10) && ours < theirs + Duration::from_secs(30), "{:?} {:?}", theirs, ours);
                            }
                            (theirs, ours) => prop_assert!(false, "{:?}, but the model {:?}", theirs, ours),
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
}
