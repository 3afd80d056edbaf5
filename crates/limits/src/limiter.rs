//! Runs the scripts, and falls back to the local limits while Redis is out.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use db::{
    Redis, RedisError,
    redis_client::{Arg, Cmd, FromRedisValue as _, Script, ToRedisArgs, Value},
};

use crate::{
    Admission, Admitted, Algorithm, Charge, ChargeState, Decision, Limited, Permit, Policies, Policy,
    Settlement, local::Local, metric,
};

static ADMIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("admit.lua")));
static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("settle.lua")));
/// Goes into every key, so that two versions of the scripts never read each other's values.
const VERSION: &str = "v1";
/// A permit that was just given back may still be on its way to Redis: a refusal asks a second time, after those of this
/// process have arrived, and after a moment for those of other replicas.
const ON_THE_WAY: Duration = Duration::from_millis(25);
/// Longer than a call to Redis may take.
const RETURN: Duration = Duration::from_millis(300);
/// A permit that does not get back counts until its lease ends. A Redis that is only slow for a moment must not cost that.
const RETURNS_AGAIN: usize = 3;
const PAUSE_BEFORE_AGAIN: Duration = Duration::from_millis(500);

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
        let mut decision = self.decide(admission).await;
        if let (Decision::Limited(limited), Some(permit)) = (&decision, &admission.permit)
            && limited.policy == permit.policy
            && !limited.local
        {
            let returned = tokio::time::timeout(RETURN, self.local.permits.all_returned(&permit.subject));
            let _ = tokio::join!(returned, tokio::time::sleep(ON_THE_WAY));
            // Boxed, as what seldom happens: every request's future has room for all that may.
            decision = Box::pin(self.decide(admission)).await;
        }
        if let (Decision::Admitted(Admitted { local: false, .. }), Some(permit)) =
            (&decision, &admission.permit)
        {
            self.local.permits.hold(permit);
        }
        metric::record(admission, &decision);
        decision
    }

    async fn decide(&self, admission: &Admission) -> Decision {
        match self.run(admission).await {
            Ok(decision) => decision,
            Err(error) => {
                tracing::debug!(%error, "admission falls back to the local limits");
                self.local.admit(admission)
            }
        }
    }

    async fn run(&self, admission: &Admission) -> Result<Decision, RedisError> {
        let mut call = Call::default();
        for (subject, issued_at) in &admission.revocations {
            call.add(self.revocation_key(subject), "rev", issued_at, 0, "");
        }
        if let Some((public_id, etag)) = &admission.record {
            call.add(self.record_key(public_id), "rec", etag, 0, "");
        }
        for charge in &admission.charges {
            let rate = charge.policy.rate;
            call.add(self.charge_key(charge), kind(charge), rate.limit, micros(rate.period), charge.cost);
        }
        if let Some(permit) = &admission.permit {
            let key = self.permit_key(&permit.subject);
            call.add(key, "sem", permit.limit, micros(permit.lease), &permit.id);
        }
        let answer = call.run(&ADMIT, &self.redis).await?;
        let answer = String::from_redis_value(answer).map_err(|e| RedisError::Failed(e.into()))?;
        Ok(read_answer(admission, &answer))
    }

    /// Corrects charges and gives a permit back. In this process that is done when this returns; the future tells Redis. Best
    /// effort: while Redis is out, leases and buckets end by themselves.
    ///
    /// A permit that Redis did not hear of is returned again, and nobody waits for that.
    pub fn settle(&self, settlement: Settlement) -> impl Future<Output = ()> + Send + use<> {
        if let Some(permit) = &settlement.permit {
            self.local.permits.give_back(permit);
        }
        if settlement.local {
            self.local.settle(&settlement.corrections);
        }
        let limiter = self.clone();
        async move {
            let settled = limiter.settle_in_redis(&settlement).await;
            // A permit has more tries.
            if !settled && corrections(&settlement).next().is_some() {
                lost();
            }
            match settlement.permit {
                Some(permit) if settled => limiter.local.permits.forget(&permit),
                Some(permit) => limiter.return_later(permit),
                None => {}
            }
        }
    }

    /// Giving a permit back may be done twice, which correcting a charge may not.
    #[expect(
        clippy::disallowed_methods,
        reason = "at a shutdown it may be lost: then the lease ends by itself"
    )]
    fn return_later(self, permit: Permit) {
        tokio::spawn(async move {
            let settlement = Settlement { permit: Some(permit.clone()), ..Settlement::default() };
            let mut left = RETURNS_AGAIN;
            loop {
                tokio::time::sleep(PAUSE_BEFORE_AGAIN).await;
                if self.settle_in_redis(&settlement).await {
                    break;
                }
                left -= 1;
                if left == 0 {
                    lost();
                    break;
                }
            }
            self.local.permits.forget(&permit);
        });
    }

    /// False when Redis was not reached.
    async fn settle_in_redis(&self, settlement: &Settlement) -> bool {
        let mut call = Call::default();
        for (charge, difference) in corrections(settlement) {
            let rate = charge.policy.rate;
            call.add(self.charge_key(charge), kind(charge), rate.limit, micros(rate.period), difference);
        }
        if let Some(permit) = &settlement.permit {
            call.add(self.permit_key(&permit.subject), "sem", permit.limit, 0, &permit.id);
        }
        call.is_empty() || call.run(&SETTLE, &self.redis).await.is_ok()
    }

    /// From now on another process holds this permit: here it does not count any more.
    pub fn hand_over(&self, permit: &Permit) {
        self.local.permits.forget(permit);
    }

    /// Takes over a permit that another process took. It is good from the next [`Self::renew`] on.
    pub fn take_over(&self, permit: &Permit) {
        self.local.permits.hold(permit);
    }

    /// Prolongs a permit that is held for long; one that Redis has lost, or never knew, is noted there again.
    pub async fn renew(&self, permit: &Permit) {
        if !self.local.permits.renew(permit) {
            return;
        }
        let mut call = Call::default();
        let key = self.permit_key(&permit.subject);
        call.add(key, "renew", permit.limit, micros(permit.lease), &permit.id);
        // A lost renewal is made up for by the next one: the lease lasts several.
        let _ = call.run(&SETTLE, &self.redis).await;
        // Given back meanwhile, and perhaps overtaken by this renewal: then it has to be given back once more.
        if !self.local.permits.renew(permit) {
            let permit = Some(permit.clone());
            self.settle_in_redis(&Settlement { permit, ..Settlement::default() }).await;
        }
    }

    /// Where a subject stands with a policy, without taking anything. For permits: how many are free; those of a process that
    /// died count until their lease ends.
    pub async fn look(&self, policy: &Policy, subject: &str) -> Result<ChargeState, RedisError> {
        if policy.algorithm == Algorithm::Permits {
            let key = self.permit_key(subject);
            let taken = self
                .redis
                .call_hot(async |c| {
                    let (s, us): (u64, u64) = db::redis_client::cmd("TIME").query_async(c).await?;
                    let mut count = db::redis_client::cmd("ZCOUNT");
                    count.arg(&key).arg(format!("({}", s * 1_000_000 + us)).arg("+inf");
                    count.query_async::<u64>(c).await
                })
                .await?;
            let free = policy.rate.limit.saturating_sub(taken);
            return Ok(ChargeState::new(policy, free, Duration::ZERO));
        }
        let mut admission = Admission::default();
        admission.charge(policy.charge(subject, 0));
        let states = match self.run(&admission).await? {
            Decision::Admitted(admitted) => admitted.states,
            // More was used than there is: debts of AI tokens.
            Decision::Limited(limited) => limited.states,
            _ => Vec::new(),
        };
        Ok(states.first().copied().unwrap_or_else(|| ChargeState::new(policy, 0, Duration::ZERO)))
    }

    /// Gives a subject everything that a policy allows, as if it had used nothing; true when it had used something. The local
    /// limits of other replicas, which count only while Redis is out, are not reached.
    pub async fn reset(&self, policy: &Policy, subject: &str) -> Result<bool, RedisError> {
        self.local.reset(policy, subject);
        let key = match policy.algorithm {
            Algorithm::Permits => self.permit_key(subject),
            _ => self.charge_key(&policy.charge(subject, 0)),
        };
        self.redis
            .call_hot(async |c| db::redis_client::cmd("DEL").arg(&key).query_async::<bool>(c).await)
            .await
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

    fn permit_key(&self, subject: &str) -> String {
        self.redis.key(format_args!("{VERSION}:sem:{subject}"))
    }
}

/// A call of one of the scripts: operations in their common layout.
struct Call {
    keys: Vec<String>,
    arguments: Cmd,
}

impl Default for Call {
    /// Room for what nearly every request asks: two operations.
    fn default() -> Self {
        Self { keys: Vec::with_capacity(2), arguments: Cmd::with_capacity(8, 64) }
    }
}

impl Call {
    fn add(&mut self, key: String, kind: &str, a: impl ToRedisArgs, b: u64, c: impl ToRedisArgs) {
        self.keys.push(key);
        self.arguments.arg(kind).arg(a).arg(b).arg(c);
    }

    fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    async fn run(&self, script: &Script, redis: &Redis) -> Result<Value, RedisError> {
        redis.call_script(script, || self.command(script)).await
    }

    fn command(&self, script: &Script) -> Cmd {
        let size = 64 + self.keys.iter().map(String::len).sum::<usize>();
        let mut command = Cmd::with_capacity(3 + 5 * self.keys.len(), size + 64);
        command.arg("EVALSHA").arg(script.get_hash()).arg(self.keys.len()).arg(&self.keys);
        for argument in self.arguments.args_iter() {
            if let Arg::Simple(argument) = argument {
                command.arg(argument);
            }
        }
        command
    }
}

fn kind(charge: &Charge) -> &'static str {
    match charge.policy.algorithm {
        Algorithm::Gcra => "gcra",
        Algorithm::SlidingWindow => "win",
        Algorithm::FixedWindow => "cnt",
        Algorithm::Permits => "sem",
    }
}

/// Those that Redis has to hear of. What the local limits took is corrected there, and a sliding window has no fractions to give
/// back.
fn corrections(settlement: &Settlement) -> impl Iterator<Item = &(Charge, i64)> {
    let local = settlement.local;
    settlement.corrections.iter().filter(move |(charge, difference)| {
        !local && *difference != 0 && charge.policy.algorithm != Algorithm::SlidingWindow
    })
}

fn lost() {
    metrics::counter!("settlements_lost_total").increment(1);
}

fn micros(d: Duration) -> u64 {
    d.as_micros() as u64
}

fn read_answer(admission: &Admission, answer: &str) -> Decision {
    let mut parts = answer.splitn(3, ' ');
    let (status, index, rest) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let mut numbers = rest.split(' ').map(|number| number.parse::<i64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match status {
        Some("0") => {
            next();
            Decision::Admitted(Admitted { states: states(admission, next), local: false })
        }
        Some("1") => {
            let index = index.and_then(|index| index.parse::<usize>().ok()).unwrap_or(0);
            let before = admission.revocations.len() + usize::from(admission.record.is_some());
            let charge = admission.charges.get(index.saturating_sub(before + 1));
            let (policy, limit, period) = match (charge, &admission.permit) {
                (Some(c), _) => (c.policy.name, c.policy.rate.limit, c.policy.rate.period),
                (None, Some(p)) => (p.policy, u64::from(p.limit), Duration::ZERO),
                (None, None) => ("unknown", 0, Duration::ZERO),
            };
            let retry_after = u64::try_from(next()).ok().map(Duration::from_micros);
            let states = states(admission, next);
            Decision::Limited(Limited { policy, limit, period, retry_after, states, local: false })
        }
        Some("2") => Decision::Revoked,
        Some("4") => Decision::RecordChanged(rest.to_owned()),
        _ => Decision::RecordMissing,
    }
}

/// Where each charge stands, from the answer's pairs.
fn states(admission: &Admission, mut next: impl FnMut() -> i64) -> Vec<ChargeState> {
    let state = |charge: &Charge| {
        let (remaining, reset) = (next(), next());
        ChargeState::new(&charge.policy, remaining as u64, Duration::from_micros(reset as u64))
    };
    admission.charges.iter().map(state).collect()
}
