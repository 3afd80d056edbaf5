//! What a run holds of its user's limits.

use std::time::Duration;

use config::Rate;
use limits::{Charge, Permit, Policies, Settlement};
use serde::{Deserialize, Serialize};

/// Tokens that were reserved, and a permit: taken by the API, given back by whoever ends the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    permit: HeldPermit,
    tokens: Vec<HeldTokens>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HeldPermit {
    subject: String,
    id: String,
    limit: u64,
}

/// The rate is written down with it: an API key may have one of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HeldTokens {
    policy: String,
    subject: String,
    limit: u64,
    period_ms: u64,
    reserved: u64,
}

impl Held {
    /// Writes down what an admission took.
    pub fn new<'a>(permit: &Permit, tokens: impl IntoIterator<Item = &'a Charge>) -> Self {
        let (subject, id) = (permit.subject.clone(), permit.id.clone());
        let tokens = tokens.into_iter().map(|charge| HeldTokens {
            policy: charge.policy.name.to_owned(),
            subject: charge.subject.clone(),
            limit: charge.policy.rate.limit,
            period_ms: charge.policy.rate.period.as_millis() as u64,
            reserved: charge.cost,
        });
        Self { permit: HeldPermit { subject, id, limit: permit.limit.into() }, tokens: tokens.collect() }
    }

    /// The permit.
    pub fn permit(&self, policies: &Policies) -> Permit {
        let HeldPermit { subject, id, limit } = &self.permit;
        let policy = &policies.concurrent_streams;
        policy.with_rate(Rate { limit: *limit, ..policy.rate }).permit(subject, id)
    }

    /// What gives everything back but the tokens that were used.
    pub fn settlement(&self, policies: &Policies, used: u64) -> Settlement {
        let corrections = self.tokens.iter().filter_map(|held| {
            let rate = Rate { limit: held.limit, period: Duration::from_millis(held.period_ms) };
            let policy = policies.find(&held.policy)?.with_rate(rate);
            let difference = i64::try_from(used).unwrap_or(i64::MAX).saturating_sub(held.reserved as i64);
            Some((policy.charge(&held.subject, held.reserved), difference))
        });
        Settlement { corrections: corrections.collect(), permit: Some(self.permit(policies)), local: false }
    }
}
