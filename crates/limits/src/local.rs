//! The limits that hold while Redis is out: the same algorithms in memory, each replica its share.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use config::Rate;
use tokio::time::Instant;

use crate::{
    Admission, Admitted, Charge, ChargeState, Decision, Limited, Permit, Policy,
    bucket::{Bucket, Micros},
    permits::Permits,
};

/// Buckets that are kept at most: some 10 MB. Beyond that, full ones go first, then any: memory is bounded before all else.
const MAX_BUCKETS: usize = 50_000;

/// Buckets by policy and subject, each with the rate that holds for it here.
type Buckets = HashMap<(&'static str, String), (Rate, Bucket)>;

/// Limits of this process alone.
#[derive(Debug)]
pub(crate) struct Local {
    replicas: u32,
    started: Instant,
    buckets: Mutex<Buckets>,
    /// Permits that this process holds, wherever they were taken.
    pub(crate) permits: Permits,
}

impl Local {
    /// For one of `replicas` processes: each allows its share of every limit, and at least one.
    pub(crate) fn new(replicas: u32) -> Self {
        Self {
            replicas: replicas.max(1),
            started: Instant::now(),
            buckets: Mutex::default(),
            permits: Permits::default(),
        }
    }

    /// Decides on the charges and the permit, all or nothing. Revocation and records are the caller's business.
    pub(crate) fn admit(&self, admission: &Admission) -> Decision {
        let now = self.now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() > MAX_BUCKETS {
            shrink(&mut buckets, now);
        }
        let mut refusal = None;
        let mut states = Vec::with_capacity(admission.charges.len());
        for charge in &admission.charges {
            let (rate, bucket) = self.bucket(&mut buckets, charge);
            let checked = bucket.check(*rate, charge.cost, now);
            let standing = bucket.standing(*rate, now);
            let policy = charge.policy.with_rate(*rate);
            states.push(ChargeState::new(&policy, standing.remaining, standing.reset));
            if let Err(wait) = checked {
                // More than the share of this replica may fit the limit once Redis is back.
                let fits = charge.cost <= charge.policy.rate.limit;
                let wait = wait.or_else(|| fits.then_some(Duration::from_secs(5)));
                refusal.get_or_insert((charge.policy.name, charge.policy.rate, wait));
            }
        }
        if refusal.is_none()
            && let Some(permit) = &admission.permit
            && !self.take(permit)
        {
            let rate = Rate { limit: permit.limit.into(), period: Duration::ZERO };
            refusal = Some((permit.policy, rate, Some(Duration::from_secs(1))));
        }
        if let Some((policy, Rate { limit, period }, retry_after)) = refusal {
            return Decision::Limited(Limited { policy, limit, period, retry_after, states, local: true });
        }
        for (charge, state) in admission.charges.iter().zip(&mut states) {
            let (rate, bucket) = self.bucket(&mut buckets, charge);
            bucket.take(charge.cost, now);
            let standing = bucket.standing(*rate, now);
            (state.remaining, state.reset) = (standing.remaining, standing.reset);
        }
        Decision::Admitted(Admitted { states, local: true })
    }

    /// Corrects charges that were taken here.
    pub(crate) fn settle(&self, corrections: &[(Charge, i64)]) {
        let now = self.now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        for (charge, difference) in corrections {
            if let Some((rate, bucket)) = buckets.get_mut(&key(charge)) {
                bucket.settle(*rate, *difference, now);
            }
        }
    }

    /// Fills the bucket of one subject. Permits that this process holds are in use, and stay.
    pub(crate) fn reset(&self, policy: &Policy, subject: &str) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.remove(&(policy.name, subject.to_owned()));
    }

    fn bucket<'a>(&self, buckets: &'a mut Buckets, charge: &Charge) -> &'a mut (Rate, Bucket) {
        let Rate { limit, period } = charge.policy.rate;
        let share = Rate { limit: (limit / u64::from(self.replicas)).max(1), period };
        let found =
            buckets.entry(key(charge)).or_insert_with(|| (share, Bucket::new(charge.policy.algorithm)));
        found.0 = share;
        found
    }

    fn take(&self, permit: &Permit) -> bool {
        let share = (permit.limit / self.replicas).max(1) as usize;
        let free = self.permits.count(&permit.subject, &permit.id) < share;
        if free {
            self.permits.hold(permit);
        }
        free
    }

    fn now(&self) -> Micros {
        self.started.elapsed().as_micros() as Micros
    }
}

fn key(charge: &Charge) -> (&'static str, String) {
    (charge.policy.name, charge.subject.clone())
}

fn shrink(buckets: &mut Buckets, now: Micros) {
    buckets.retain(|_, (rate, bucket)| !bucket.is_full(*rate, now));
    let mut excess = buckets.len().saturating_sub(MAX_BUCKETS / 2);
    buckets.retain(|_, _| {
        let goes = excess > 0;
        excess = excess.saturating_sub(1);
        !goes
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, Per};

    fn policy(name: &'static str, algorithm: Algorithm, rate: &str) -> Policy {
        Policy { name, algorithm, per: Per::Caller, rate: rate.parse().expect("a rate") }
    }

    fn passes(local: &Local, charges: &[Charge], permit: Option<Permit>) -> bool {
        let admission = Admission { charges: charges.to_vec(), permit, ..Admission::default() };
        matches!(local.admit(&admission), Decision::Admitted(_))
    }

    #[tokio::test(start_paused = true)]
    async fn several_policies_are_all_or_nothing_locally_too() {
        let local = Local::new(2);
        let wide = policy("global", Algorithm::Gcra, "100/1h");
        let narrow = policy("user-jobs", Algorithm::SlidingWindow, "2/1h");
        let permits = policy("concurrent-streams", Algorithm::Permits, "2/1h");
        let both = [wide.charge("u", 1), narrow.charge("u", 1)];
        assert!(passes(&local, &both, Some(permits.permit("u", "a"))));
        for _ in 0..20 {
            assert!(!passes(&local, &both, None), "the share of two is one");
            assert!(!passes(&local, &[wide.charge("u", 1)], Some(permits.permit("u", "b"))), "no permit");
        }
        let look = Admission { charges: vec![wide.charge("u", 0)], ..Admission::default() };
        let Decision::Admitted(admitted) = local.admit(&look) else { panic!("cost 0 asks") };
        assert_eq!(admitted.states[0].remaining, 49, "the refusals cost nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn local_limits_refill_settle_and_are_reset() {
        let local = Local::new(1);
        let tokens = policy("ai-tokens", Algorithm::Gcra, "60/1m");
        let taken = tokens.charge("u", 60);
        assert!(passes(&local, std::slice::from_ref(&taken), None));
        assert!(!passes(&local, &[tokens.charge("u", 10)], None));
        local.settle(&[(taken, -50)]);
        assert!(passes(&local, &[tokens.charge("u", 50)], None), "what was not used is there again");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(passes(&local, &[tokens.charge("u", 5)], None), "one a second comes back");
        assert!(!passes(&local, &[tokens.charge("u", 1)], None));
        local.reset(&tokens, "u");
        assert!(passes(&local, &[tokens.charge("u", 60)], None));
    }

    /// Case R8, while Redis is out.
    #[tokio::test(start_paused = true)]
    async fn many_clients_cost_bounded_memory_while_redis_is_out() {
        let local = Local::new(1);
        let global = policy("global", Algorithm::Gcra, "100/15m");
        for client in 0..200_000_u32 {
            assert!(passes(&local, &[global.charge(format!("ip:{client}"), 1)], None));
            if client % 1_000 == 0 {
                let kept = local.buckets.lock().expect("no panic before").len();
                assert!(kept <= MAX_BUCKETS + 1, "{kept}");
            }
        }
    }
}
