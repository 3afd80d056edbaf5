//! The limits that hold while Redis is out: GCRA in memory, each replica its share.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};
use tokio::time::Instant;

use crate::{Admission, Admitted, Charge, ChargeState, Decision, Limited, Permit, Settlement};

/// A limiter is for one policy at one rate.
type Shape = (&'static str, u64, Duration);
type Keyed = RateLimiter<String, DefaultKeyedStateStore<String>, DefaultClock>;

/// Limits of this process alone.
#[derive(Debug)]
pub struct Local {
    replicas: u32,
    limiters: Mutex<HashMap<Shape, Arc<Keyed>>>,
    permits: Mutex<HashMap<String, HashMap<String, Instant>>>,
    clock: DefaultClock,
    calls: AtomicUsize,
}

/// When one policy has more keys than this, those that are full again are dropped.
const MANY_KEYS: usize = 10_000;
/// Looking through all of them takes a while, so not at every call.
const CLEAN_UP_EVERY: usize = 1_000;

impl Local {
    /// For one of `replicas` processes: each allows its share of every limit, and at least one.
    pub fn new(replicas: u32) -> Self {
        Self {
            replicas: replicas.max(1),
            limiters: Mutex::default(),
            permits: Mutex::default(),
            clock: DefaultClock::default(),
            calls: AtomicUsize::new(0),
        }
    }

    /// Decides on the charges and the permit, one after the other: rougher than the script, a refusal does not give back what
    /// the policies before it took. Revocation and records are the caller's business.
    pub fn admit(&self, admission: &Admission) -> Decision {
        let mut states = Vec::with_capacity(admission.charges.len());
        for charge in &admission.charges {
            match self.charge(charge) {
                Ok(state) => states.push(state),
                Err(limited) => return Decision::Limited(limited),
            }
        }
        if let Some(permit) = &admission.permit
            && !self.take(permit)
        {
            return Decision::Limited(Limited {
                policy: "concurrent-streams",
                limit: u64::from(permit.limit),
                period: Duration::ZERO,
                retry_after: Some(Duration::from_secs(1)),
                local: true,
            });
        }
        Decision::Admitted(Admitted { states, local: true })
    }

    fn charge(&self, charge: &Charge) -> Result<ChargeState, Limited> {
        let rate = charge.policy.rate;
        let share = u32::try_from(rate.limit / u64::from(self.replicas)).unwrap_or(u32::MAX).max(1);
        let limited = |retry_after| Limited {
            policy: charge.policy.name,
            limit: rate.limit,
            period: rate.period,
            retry_after,
            local: true,
        };
        let Some(cost) = NonZeroU32::new(u32::try_from(charge.cost).unwrap_or(u32::MAX)) else {
            return Ok(state(charge, share));
        };
        let limiter = self.limiter(charge, share);
        match limiter.check_key_n(&charge.subject, cost) {
            Ok(Ok(())) => Ok(state(charge, share)),
            Ok(Err(not_until)) => Err(limited(Some(not_until.wait_time_from(self.clock.now())))),
            // More than the whole share. It may fit the limit once Redis is back.
            Err(_) => Err(limited((charge.cost <= rate.limit).then_some(Duration::from_secs(5)))),
        }
    }

    fn limiter(&self, charge: &Charge, share: u32) -> Arc<Keyed> {
        let rate = charge.policy.rate;
        let key = (charge.policy.name, rate.limit, rate.period);
        let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        let limiter = limiters.entry(key).or_insert_with(|| {
            let burst = NonZeroU32::new(share).expect("a share is at least 1");
            let interval = (rate.period / share).max(Duration::from_nanos(1));
            let quota = Quota::with_period(interval).expect("the interval is not zero").allow_burst(burst);
            Arc::new(RateLimiter::keyed(quota))
        });
        if limiter.len() > MANY_KEYS
            && self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(CLEAN_UP_EVERY)
        {
            limiter.retain_recent();
        }
        limiter.clone()
    }

    fn take(&self, permit: &Permit) -> bool {
        let now = Instant::now();
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        let held = permits.entry(permit.subject.clone()).or_default();
        held.retain(|_, until| *until > now);
        let share = (permit.limit / self.replicas).max(1) as usize;
        if held.len() >= share && !held.contains_key(&permit.id) {
            return false;
        }
        held.insert(permit.id.clone(), now + permit.lease);
        true
    }

    /// Gives a permit back. Corrections of charges are dropped: the local limits are rough anyway.
    pub fn settle(&self, settlement: &Settlement) {
        let Some(permit) = &settlement.permit else { return };
        let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = permits.get_mut(&permit.subject) {
            held.remove(&permit.id);
            if held.is_empty() {
                permits.remove(&permit.subject);
            }
        }
    }
}

fn state(charge: &Charge, share: u32) -> ChargeState {
    // governor does not tell what is left; the share is the honest upper bound.
    let (limit, reset) = (u64::from(share), charge.policy.rate.period);
    ChargeState { policy: charge.policy.name, limit, remaining: limit.saturating_sub(charge.cost), reset }
}
