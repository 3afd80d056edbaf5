//! What a request holds of the limits, from admission to its end.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use db::Database;
use limits::{Admission, Admitted, Charge, Decision, Limiter, Permit, Settlement};
use runtime::{Clock, Lifecycle};
use uuid::Uuid;

use super::Inner;
use crate::{
    admission::Caller,
    auth::{Record, revocation},
};

/// What an answer without a limit of its own is taken to cost, and the most that is reserved for one with a limit. The
/// difference is settled at the end.
const COMPLETION_CAP: u64 = 1_024;
/// Longer than a call to Redis may take. When the client left during admission, its permit is given back so much later: else
/// the return could overtake the taking, on another connection to Redis.
const AFTER_UNANSWERED: Duration = Duration::from_millis(400);
/// How often a permit is renewed and the session looked at: with the heartbeat, but within these bounds.
const RENEWALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));

/// How often a request must call [`Reservation::renew`].
pub(super) fn renewal_interval(heartbeat: Duration) -> Duration {
    heartbeat.clamp(RENEWALS.0, RENEWALS.1)
}

/// Tokens and a permit that are taken. Gives back what is not used, and the permit, when dropped, wherever the request ended.
#[derive(Debug)]
pub(super) struct Reservation {
    limiter: Limiter,
    database: Database,
    clock: Clock,
    lifecycle: Lifecycle,
    /// Set when admission begins: from then on there may be something to give back, even if its answer is never read.
    taken: Mutex<Option<Taken>>,
    /// Not the request's id: that one the client may choose, and use twice.
    permit_id: String,
    admitted: Option<Where>,
    used: u64,
    revoked: Arc<AtomicBool>,
}

/// Where the charges were taken, and are corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Redis,
    /// In the local limits, because Redis was out.
    Here,
}

#[derive(Debug)]
struct Taken {
    permit: Permit,
    /// Charges in tokens; all have the same cost.
    tokens: [Charge; 2],
    credential: Held,
}

/// What a request was admitted with, and may be ended while it runs.
#[derive(Debug, Clone)]
enum Held {
    Session { id: Uuid, issued_at: i64 },
    Key { id: Uuid, public_id: Arc<str> },
}

impl Reservation {
    pub(super) fn new(ai: &Inner) -> Self {
        Self {
            limiter: ai.limiter.clone(),
            database: ai.database.clone(),
            clock: ai.clock.clone(),
            lifecycle: ai.lifecycle.clone(),
            taken: Mutex::default(),
            permit_id: Uuid::now_v7().simple().to_string(),
            admitted: None,
            used: 0,
            revoked: Arc::default(),
        }
    }

    /// Adds to an admission what this request takes: one request, its tokens by the minute and by the day, and a permit.
    pub(super) fn add_to(
        &self,
        admission: &mut Admission,
        caller: &Caller,
        prompt_tokens: u64,
        completion_limit: Option<u64>,
    ) {
        let policies = self.limiter.policies();
        let mut tokens =
            [&policies.ai_tokens, &policies.ai_tokens_daily].map(|policy| caller.charge(policy, 0));
        let smallest = tokens[0].policy.rate.limit.min(tokens[1].policy.rate.limit);
        let cost = reserve(prompt_tokens, completion_limit, smallest);
        admission.charge(caller.charge(&policies.ai_requests, 1));
        for charge in &mut tokens {
            charge.cost = cost;
            admission.charge(charge.clone());
        }
        let (streams, subject) = caller.bucket(&policies.concurrent_streams);
        let permit = streams.permit(subject, self.permit_id.as_str());
        admission.permit(permit.clone());
        let credential = match (caller.session_id, &caller.api_key_public_id) {
            (None, Some(public_id)) => {
                Held::Key { id: caller.api_key_id.unwrap_or_default(), public_id: public_id.clone() }
            }
            (id, _) => Held::Session { id: id.unwrap_or_default(), issued_at: caller.issued_at },
        };
        // Asked a second time, because the record of an API key had to be loaded, the first answer took nothing.
        *self.taken() = Some(Taken { permit, tokens, credential });
    }

    fn taken(&self) -> MutexGuard<'_, Option<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limits said yes.
    pub(super) fn admitted(&mut self, admitted: &Admitted) {
        self.admitted = Some(if admitted.local { Where::Here } else { Where::Redis });
    }

    /// The limits said no: there is nothing to give back.
    pub(super) fn refused(&mut self) {
        self.taken().take();
    }

    /// What it holds, so that another process can give it back; `None` unless Redis knows of it.
    pub(super) fn held(&self) -> Option<runs::Held> {
        let taken = self.taken();
        let taken = taken.as_ref().filter(|_| self.admitted == Some(Where::Redis))?;
        Some(runs::Held::new(&taken.permit, &taken.tokens))
    }

    /// Another process has it now.
    pub(super) fn hand_over(self) {
        let taken = self.taken().take();
        if let Some(taken) = taken {
            self.limiter.hand_over(&taken.permit);
        }
    }

    /// So many tokens were used in the end.
    pub(super) fn used(&mut self, tokens: u64) {
        self.used = tokens;
    }

    /// Prolongs the permit, and asks whether the session or API key was ended meanwhile; the answer is in
    /// [`Self::is_revoked`] soon.
    pub(super) fn renew(&self) {
        let held = self.taken().as_ref().map(|t| (t.permit.clone(), t.credential.clone()));
        let Some((permit, credential)) = held else { return };
        let (limiter, database) = (self.limiter.clone(), self.database.clone());
        let (revoked, now) = (self.revoked.clone(), self.clock.now());
        self.lifecycle.spawn_task(async move {
            limiter.renew(&permit).await;
            let ended = match credential {
                Held::Session { id, issued_at } => {
                    let mut admission = Admission::default();
                    admission.unless_revoked(revocation::subject(id), issued_at);
                    matches!(limiter.admit(&admission).await, Decision::Revoked)
                }
                Held::Key { id, public_id } => key_has_ended(&limiter, &database, id, &public_id, now).await,
            };
            if ended {
                revoked.store(true, Ordering::Relaxed);
            }
        });
    }

    /// True when the session or key was found ended.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// Gives back now what would be given back at the drop.
    pub(super) fn settle(&mut self) {
        let Some(taken) = self.taken().take() else { return };
        let local = self.admitted == Some(Where::Here);
        let mut settlement = Settlement { permit: Some(taken.permit), local, ..Settlement::default() };
        // Without an answer to the admission it is not known whether anything was charged, so nothing is given back.
        if self.admitted.is_some() {
            let used = i64::try_from(self.used).unwrap_or(i64::MAX);
            settlement.corrections =
                taken.tokens.map(|charge| (charge.clone(), used.saturating_sub(charge.cost as i64))).to_vec();
        }
        // Outside a runtime (its very end) the lease has to do.
        if tokio::runtime::Handle::try_current().is_ok() {
            let unanswered = self.admitted.is_none();
            // Here the permit is back as of now, and whoever comes next on this replica finds it so.
            let settled = self.limiter.settle(settlement);
            self.lifecycle.spawn_task(async move {
                if unanswered {
                    tokio::time::sleep(AFTER_UNANSWERED).await;
                }
                settled.await;
            });
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Whether an API key was revoked or has expired. Its record in Redis says so; where there is none, the database does. While
/// both are out, nobody knows, and the stream goes on.
async fn key_has_ended(
    limiter: &Limiter,
    database: &Database,
    id: Uuid,
    public_id: &str,
    now: DateTime<Utc>,
) -> bool {
    let mut admission = Admission::default();
    // An etag that no record has: the answer is the record.
    admission.with_record(public_id, "");
    if let Decision::RecordChanged(encoded) = limiter.admit(&admission).await
        && let Some(record) = Record::decode(&encoded)
    {
        return record.dead || record.expires_at.is_some_and(|end| end <= now);
    }
    let active = database.call("api_keys.is_active", async |c| db::api_keys::is_active(c, id).await);
    active.await.is_ok_and(|active| !active)
}

/// How many tokens to reserve. A limit smaller than the usual reservation must not lock its owner out: then all of it is
/// reserved. A prompt that alone is larger can never pass.
fn reserve(prompt: u64, completion_limit: Option<u64>, smallest_limit: u64) -> u64 {
    let completion = completion_limit.unwrap_or(COMPLETION_CAP).min(COMPLETION_CAP);
    prompt.max(prompt.saturating_add(completion).min(smallest_limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_covers_the_answer_but_locks_nobody_out() {
        assert_eq!(reserve(10, Some(5), 1_000), 15);
        assert_eq!(reserve(10, None, 100_000), 10 + COMPLETION_CAP);
        assert_eq!(reserve(10, Some(1_000_000), 100_000), 10 + COMPLETION_CAP);
        assert_eq!(reserve(10, None, 100), 100, "a small limit");
        assert_eq!(reserve(200, None, 100), 200, "refused, and rightly");
    }
}
