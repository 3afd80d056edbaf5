//! Answers in Redis, and who of many that ask the same is to ask the engine.
//!
//! A digest decides the place of its answer, one of a fixed number; a newer answer takes the place of an older one. So the cache is
//! bounded without anything to count or clean up, and one key is all there is to an answer.

use std::{sync::LazyLock, time::Duration};

use aws_lc_rs::digest::Digest;
use bytes::Bytes;
use config::CacheConfig;
use db::redis_client::{FromRedisValue as _, Script, Value};
use db::{Redis, RedisError};
use uuid::Uuid;

static FIND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("find.lua")));
static END: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("end.lua")));

/// A leader that says nothing for so long has crashed: another takes over.
pub(super) const LEASE: Duration = Duration::from_secs(3);
/// After an answer that cannot be kept, those who wait and those who come so soon after them ask for themselves: one after the
/// other they would wait in vain.
const ALONE: Duration = Duration::from_secs(1);

/// Where the answer to one request is, or would be.
#[derive(Debug, Clone)]
pub(in crate::ai) struct Entry {
    redis: Redis,
    digest: Digest,
    place: String,
    lead: String,
    /// By which it is known who leads.
    token: String,
    ttl: Duration,
}

/// What [`Entry::find`] found.
#[derive(Debug)]
pub(super) enum Found {
    /// The answer, and how many seconds old it is.
    Hit { age: u64, body: Bytes },
    /// None. It is ours to ask the engine; others wait for it.
    Lead,
    /// None, but somebody is asking the engine already.
    Wait,
    /// None, and there will be none: ask for yourself.
    Alone,
}

/// What a leader has to say.
#[derive(Debug)]
pub(super) enum Word<'a> {
    /// Here is the answer.
    Keep(&'a Bytes),
    /// It takes longer.
    Still,
    /// There is no answer to keep.
    Alone,
    /// The client left.
    Leave,
}

impl Entry {
    pub(super) fn new(redis: &Redis, config: &CacheConfig, digest: Digest) -> Self {
        let bytes = digest.as_ref();
        let number = bytes.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte));
        Self {
            redis: redis.clone(),
            digest,
            place: redis.key(format_args!("cache:{}", number % config.places)),
            lead: redis.key(format_args!("cache:lead:{number:016x}")),
            token: Uuid::new_v4().simple().to_string(),
            ttl: config.ttl,
        }
    }

    /// Looks for the answer. Not with a connection of the pool: those who wait for one answer are many, and a pool that is empty
    /// looks like a Redis that is out.
    pub(super) async fn find(&self) -> Result<Found, RedisError> {
        let mut script = FIND.prepare_invoke();
        script.key(&self.place).key(&self.lead);
        script.arg(self.digest.as_ref()).arg(&self.token).arg(LEASE.as_millis() as u64);
        // Boxed, as below: a call to Redis is large, and every request would carry it.
        let answer =
            Box::pin(self.redis.call_hot(async |c| script.invoke_async::<Vec<Value>>(c).await)).await?;
        Ok(read(answer).unwrap_or(Found::Alone))
    }

    /// Tells those who wait. When Redis is out they find that out by themselves.
    pub(super) async fn say(&self, word: Word<'_>) {
        let (name, time) = match word {
            Word::Keep(_) => ("keep", self.ttl),
            Word::Still => ("still", LEASE),
            Word::Alone => ("alone", ALONE),
            Word::Leave => ("leave", Duration::ZERO),
        };
        let mut script = END.prepare_invoke();
        script.key(&self.place).key(&self.lead);
        script.arg(name).arg(&self.token).arg(time.as_millis() as u64);
        if let Word::Keep(body) = word {
            script.arg(self.digest.as_ref()).arg(body.as_ref());
        }
        let said = Box::pin(self.redis.call_hot(async |c| script.invoke_async::<i64>(c).await)).await;
        if let Err(error) = said {
            tracing::debug!(%error, word = name, "the cache was not told");
        }
    }
}

fn read(answer: Vec<Value>) -> Option<Found> {
    let mut answer = answer.into_iter();
    let word = String::from_redis_value(answer.next()?).ok()?;
    match word.as_str() {
        "hit" => {
            let age = u64::from_redis_value(answer.next()?).ok()?;
            let body = Vec::<u8>::from_redis_value(answer.next()?).ok()?;
            Some(Found::Hit { age, body: body.into() })
        }
        "lead" => Some(Found::Lead),
        "wait" => Some(Found::Wait),
        _ => Some(Found::Alone),
    }
}
