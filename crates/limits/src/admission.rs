//! What a request must pass, and what came of it.

use std::time::Duration;

use config::Rate;

use crate::Policy;

/// Everything one request must pass. Decided all or nothing.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    pub(crate) revocations: Vec<(String, i64)>,
    pub(crate) record: Option<(String, String)>,
    pub(crate) charges: Vec<Charge>,
    pub(crate) permit: Option<Permit>,
}

/// So much on one policy for one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The policy, with the rate that holds for this subject.
    pub policy: Policy,
    /// Whose bucket: a user, an address, an address and account.
    pub subject: String,
    /// Units; 0 asks without taking.
    pub cost: u64,
}

/// One of a limited number of things that may happen at a time. A lease: when its holder dies, it ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// Of which policy.
    pub policy: &'static str,
    /// Whose permits are counted.
    pub subject: String,
    /// Tells this one from the others.
    pub id: String,
    /// How many at a time.
    pub limit: u32,
    /// How long it is good without renewal.
    pub lease: Duration,
}

impl Admission {
    /// Refuse when `subject` (such as `session:ID` or `user:ID`) was revoked at or after `issued_at`, in Unix seconds.
    pub fn unless_revoked(&mut self, subject: impl Into<String>, issued_at: i64) -> &mut Self {
        self.revocations.push((subject.into(), issued_at));
        self
    }

    /// Refuse unless the caller knows the current record of this API key. `etag` is of the record it knows, or empty.
    pub fn with_record(&mut self, public_id: impl Into<String>, etag: impl Into<String>) -> &mut Self {
        self.record = Some((public_id.into(), etag.into()));
        self
    }

    /// Take units on a policy.
    pub fn charge(&mut self, charge: Charge) -> &mut Self {
        self.charges.push(charge);
        self
    }

    /// Take a permit.
    pub fn permit(&mut self, permit: Permit) -> &mut Self {
        self.permit = Some(permit);
        self
    }
}

/// What the script, or the local fallback, decided.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Go on.
    Admitted(Admitted),
    /// Over a limit.
    Limited(Limited),
    /// The session or user was revoked.
    Revoked,
    /// Redis does not know the API key's record: load it from the database and store it.
    RecordMissing,
    /// The record changed; this is the new one (`ETAG|JSON`).
    RecordChanged(String),
}

/// A request may go on.
#[derive(Debug, Clone, Default)]
pub struct Admitted {
    /// Where each charge stands now, in the order of the admission.
    pub states: Vec<ChargeState>,
    /// True when Redis was out: local limits were used, and revocation was not looked at.
    pub local: bool,
}

/// Where a bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChargeState {
    /// The policy.
    pub policy: &'static str,
    /// Units per period.
    pub limit: u64,
    /// The period.
    pub period: Duration,
    /// Units left.
    pub remaining: u64,
    /// Until the bucket is full again (or the window ends).
    pub reset: Duration,
}

impl ChargeState {
    pub(crate) fn new(policy: &Policy, remaining: u64, reset: Duration) -> Self {
        let Rate { limit, period } = policy.rate;
        Self { policy: policy.name, limit, period, remaining, reset }
    }
}

/// A request is over a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    /// Which policy refused: a name of the table, or `concurrent-streams`.
    pub policy: &'static str,
    /// Units per period, or permits at a time.
    pub limit: u64,
    /// The period; zero for permits.
    pub period: Duration,
    /// When the same request would be admitted; `None` when never, because it costs more than the whole limit.
    pub retry_after: Option<Duration>,
    /// Where every charge of the admission stands, in its order: nothing was taken.
    pub states: Vec<ChargeState>,
    /// True when Redis was out and the local limits refused.
    pub local: bool,
}

/// The true cost of something that was admitted, known at its end.
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    /// Charges to correct, each with the difference to what was taken (negative gives back).
    pub corrections: Vec<(Charge, i64)>,
    /// The permit to give back.
    pub permit: Option<Permit>,
    /// True when the local limits took the charges, see [`Admitted::local`]: only there they are corrected.
    pub local: bool,
}
