//! Runs the scripts, and falls back to the local limits while Redis is out.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use db::{
    Redis, RedisError,
    redis_client::{FromRedisValue as _, Script, Value},
};

use crate::{
    Admission, Admitted, Algorithm, Charge, ChargeState, Decision, Limited, Local, Permit, Policies,
    Settlement,
};

static ADMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("admit.lua")));
static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("settle.lua")));
/// Goes into every key, so that two versions of the scripts never read each other's values.
const VERSION: &str = "v1";

/// Decides who may pass. Clones share everything.
#[derive(Debug, Clone)]
pub struct Limiter {
    redis: Redis,
    policies: Arc<Policies>,
    local: Arc<Local>,
}

impl Limiter {
    /// With these policies, for one of `replicas` processes.
    pub fn new(redis: Redis, policies: Policies, replicas: u32) -> Self {
        Self { redis, policies: Arc::new(policies), local: Arc::new(Local::new(replicas)) }
    }

    /// The table of policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Decides on everything a request must pass, in one round trip.
    pub async fn admit(&self, admission: &Admission) -> Decision {
        let decision = match self.run(admission).await {
            Ok(decision) => decision,
            Err(error) => {
                tracing::debug!(%error, "admission falls back to the local limits");
                self.local.admit(admission)
            }
        };
        let outcome = match &decision {
            Decision::Admitted(Admitted { local: true, .. }) => "admitted-local",
            Decision::Admitted(_) => "admitted",
            Decision::Limited(_) => "limited",
            Decision::Revoked => "revoked",
            Decision::RecordMissing | Decision::RecordChanged(_) => "record",
        };
        metrics::counter!("admission_total", "outcome" => outcome).increment(1);
        if let Decision::Limited(limited) = &decision {
            metrics::counter!("rate_limited_total", "policy" => limited.policy).increment(1);
        }
        decision
    }

    async fn run(&self, admission: &Admission) -> Result<Decision, RedisError> {
        let mut call = ADMIT.prepare_invoke();
        let mut op = |key: String, kind: &str, a: &str, b: u64, c: &str| {
            call.key(key).arg(kind).arg(a).arg(b).arg(c);
        };
        for (subject, issued_at) in &admission.revocations {
            op(self.revocation_key(subject), "rev", &issued_at.to_string(), 0, "");
        }
        if let Some((public_id, etag)) = &admission.record {
            op(self.record_key(public_id), "rec", etag, 0, "");
        }
        for charge in &admission.charges {
            let rate = charge.policy.rate;
            let cost = charge.cost.to_string();
            op(self.charge_key(charge), kind(charge), &rate.limit.to_string(), micros(rate.period), &cost);
        }
        if let Some(permit) = &admission.permit {
            op(self.permit_key(permit), "sem", &permit.limit.to_string(), micros(permit.lease), &permit.id);
        }
        let answer: Vec<Value> = self.redis.call_hot(async |c| call.invoke_async(c).await).await?;
        Ok(read_answer(admission, &answer))
    }

    /// Corrects charges and gives a permit back. Best effort: while Redis is out, leases and buckets end by themselves.
    pub async fn settle(&self, settlement: &Settlement) {
        self.local.settle(settlement);
        let mut call = SETTLE.prepare_invoke();
        let mut ops = 0;
        for (charge, difference) in &settlement.corrections {
            // A sliding window has no fractions to give back.
            if *difference == 0 || charge.policy.algorithm == Algorithm::SlidingWindow {
                continue;
            }
            let rate = charge.policy.rate;
            call.key(self.charge_key(charge))
                .arg(kind(charge))
                .arg(rate.limit)
                .arg(micros(rate.period))
                .arg(*difference);
            ops += 1;
        }
        if let Some(permit) = &settlement.permit {
            call.key(self.permit_key(permit)).arg("sem").arg(permit.limit).arg(0).arg(&permit.id);
            ops += 1;
        }
        if ops > 0 && self.redis.call_hot(async |c| call.invoke_async::<i64>(c).await).await.is_err() {
            metrics::counter!("settlements_lost_total").increment(1);
        }
    }

    /// Prolongs a permit that is held for long.
    pub async fn renew(&self, permit: &Permit) {
        let mut call = SETTLE.prepare_invoke();
        call.key(self.permit_key(permit))
            .arg("renew")
            .arg(permit.limit)
            .arg(micros(permit.lease))
            .arg(&permit.id);
        // A lost renewal is made up for by the next one: the lease lasts several.
        let _ = self.redis.call_hot(async |c| call.invoke_async::<i64>(c).await).await;
    }

    /// Marks `subject` as revoked: tokens issued up to `until_issued_at` (Unix seconds) are refused. The mark is kept for
    /// `keep`, which must cover the life of such a token.
    pub async fn revoke(
        &self,
        subject: &str,
        until_issued_at: i64,
        keep: Duration,
    ) -> Result<(), RedisError> {
        let key = self.revocation_key(subject);
        self.redis
            .call_hot(async |c| {
                let mut command = db::redis_client::cmd("SET");
                command.arg(&key).arg(until_issued_at).arg("PX").arg(keep.as_millis() as u64);
                command.query_async::<()>(c).await
            })
            .await
    }

    /// Adds the record of an API key (`ETAG|JSON`), so that the next request with it needs no database. A record that is there
    /// stays: it may be newer than what was just read from the database.
    pub async fn add_record(&self, public_id: &str, record: &str, keep: Duration) -> Result<(), RedisError> {
        let key = self.record_key(public_id);
        self.redis
            .call_hot(async |c| {
                let mut command = db::redis_client::cmd("SET");
                command.arg(&key).arg(record).arg("NX").arg("PX").arg(keep.as_millis() as u64);
                command.query_async::<Option<String>>(c).await.map(drop)
            })
            .await
    }

    /// Replaces the record of an API key, on every replica from the next request on.
    pub async fn replace_record(
        &self,
        public_id: &str,
        record: &str,
        keep: Duration,
    ) -> Result<(), RedisError> {
        let key = self.record_key(public_id);
        self.redis
            .call_hot(async |c| {
                let mut command = db::redis_client::cmd("SET");
                command.arg(&key).arg(record).arg("PX").arg(keep.as_millis() as u64);
                command.query_async::<()>(c).await
            })
            .await
    }

    fn revocation_key(&self, subject: &str) -> String {
        self.redis.key(format_args!("{VERSION}:rev:{subject}"))
    }

    fn record_key(&self, public_id: &str) -> String {
        self.redis.key(format_args!("{VERSION}:key:{public_id}"))
    }

    fn charge_key(&self, charge: &Charge) -> String {
        self.redis.key(format_args!("{VERSION}:rl:{}:{}", charge.policy.name, charge.subject))
    }

    fn permit_key(&self, permit: &Permit) -> String {
        self.redis.key(format_args!("{VERSION}:sem:{}", permit.subject))
    }
}

fn kind(charge: &Charge) -> &'static str {
    match charge.policy.algorithm {
        Algorithm::Gcra => "gcra",
        Algorithm::SlidingWindow => "win",
        Algorithm::FixedWindow => "cnt",
    }
}

fn micros(d: Duration) -> u64 {
    d.as_micros() as u64
}

fn integer(value: Option<&Value>) -> i64 {
    value.and_then(|v| i64::from_redis_value_ref(v).ok()).unwrap_or(0)
}

fn read_answer(admission: &Admission, answer: &[Value]) -> Decision {
    let (status, index) = (integer(answer.first()), integer(answer.get(1)));
    match status {
        0 => Decision::Admitted(Admitted {
            states: admission
                .charges
                .iter()
                .enumerate()
                .map(|(i, charge)| ChargeState {
                    policy: charge.policy.name,
                    limit: charge.policy.rate.limit,
                    remaining: integer(answer.get(3 + 2 * i)) as u64,
                    reset: Duration::from_micros(integer(answer.get(4 + 2 * i)) as u64),
                })
                .collect(),
            local: false,
        }),
        1 => {
            let before = admission.revocations.len() + usize::from(admission.record.is_some());
            let charge = admission.charges.get((index as usize).saturating_sub(before + 1));
            let (policy, limit, period) = match (charge, &admission.permit) {
                (Some(c), _) => (c.policy.name, c.policy.rate.limit, c.policy.rate.period),
                (None, Some(p)) => ("concurrent-streams", u64::from(p.limit), Duration::ZERO),
                (None, None) => ("unknown", 0, Duration::ZERO),
            };
            let wait = integer(answer.get(2));
            let retry_after = u64::try_from(wait).ok().map(Duration::from_micros);
            Decision::Limited(Limited { policy, limit, period, retry_after, local: false })
        }
        2 => Decision::Revoked,
        4 => match answer.get(2).and_then(|v| String::from_redis_value_ref(v).ok()) {
            Some(record) => Decision::RecordChanged(record),
            None => Decision::RecordMissing,
        },
        _ => Decision::RecordMissing,
    }
}
