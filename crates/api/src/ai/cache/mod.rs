//! Answers that are kept: the same request again is answered by Redis and not by the engine.
//!
//! Only for answers in one piece, and only where the request (`X-AI-Cache: on`) or the configuration of its route says so.
//! Everything before the engine stays as it is: identity, limits, the permit. A hit costs no tokens.
//!
//! - `digest` tells when two requests are the same.
//! - `store` keeps answers, a bounded number of a bounded size, and says who leads: of many replicas' requests that are the same
//!   at the same time, one asks the engine and the others wait for its answer, but not for long.
//! - Errors are never kept. Without Redis everybody asks the engine.

mod digest;
mod store;

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use config::{ApiConfig, CacheConfig, CachedRoute};
use db::Redis;
use engine::{Answer, EngineError, FORWARDED, Fault};
use runtime::Lifecycle;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use self::store::{Entry, Found, LEASE, Word};
use super::{Protocol, failure::Failure, request::Call};

/// In a request: `on`, `off` or `refresh`. In an answer: `hit`, `miss` or `bypass`.
const X_AI_CACHE: HeaderName = HeaderName::from_static("x-ai-cache");
/// Those who wait for an answer look for it so often: at first, and in the end.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));

/// The cache of answers.
#[derive(Debug)]
pub(super) struct Cache {
    config: CacheConfig,
    redis: Redis,
    lifecycle: Lifecycle,
    /// The engines: what others answer are other answers.
    engines: String,
}

/// What a request says about the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing: the configuration of its route decides.
    None,
    /// The answer may be one that is kept, and is to be kept.
    On,
    /// Neither.
    Off,
    /// The engine is to be asked, and its answer to be kept.
    Refresh,
}

impl Wish {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Failure> {
        match headers.get(X_AI_CACHE).map(HeaderValue::as_bytes) {
            None => Ok(Self::None),
            Some(b"on") => Ok(Self::On),
            Some(b"off") => Ok(Self::Off),
            Some(b"refresh") => Ok(Self::Refresh),
            Some(_) => Err(Failure::param("X-AI-Cache", "X-AI-Cache must be on, off or refresh.")),
        }
    }
}

/// What a request has to do with the cache.
#[derive(Debug)]
pub(super) enum Plan {
    /// Nothing.
    Off,
    /// It asked for it, in vain: an answer to it cannot be kept.
    Bypass,
    /// Its answer may be there.
    Use(Entry),
    /// Its answer is to be renewed.
    Refresh(Entry),
}

impl Plan {
    /// For a request that is answered past the cache.
    pub(super) fn unused(&self) -> Status {
        if matches!(self, Self::Off) { Status::Off } else { Status::Bypass }
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// The engine was asked, and the cache has nothing to do with it.
    Off,
    /// The answer was there, and is so many seconds old.
    Hit { age: u64 },
    /// The engine was asked, and its answer is kept if it can be.
    Miss,
    /// The engine was asked, because the cache could not be.
    Bypass,
}

impl Status {
    /// Tells the client.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        let word = match self {
            Self::Off => return,
            Self::Hit { .. } => "hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        };
        headers.insert(X_AI_CACHE, HeaderValue::from_static(word));
        if let Self::Hit { age } = self {
            headers.insert(header::AGE, age.into());
        }
        metrics::counter!("ai_cache_requests_total", "result" => word).increment(1);
    }
}

impl Cache {
    pub(super) fn from_config(config: &ApiConfig, redis: Redis, lifecycle: Lifecycle) -> Self {
        let engines =
            config.ai.engines.iter().map(|engine| engine.url.as_str()).collect::<Vec<_>>().join(" ");
        Self { config: config.cache.clone(), redis, lifecycle, engines }
    }

    /// Whether a request uses the cache.
    pub(super) fn plan(
        &self,
        wish: Wish,
        protocol: Protocol,
        call: &Call,
        headers: &HeaderMap,
        user: Uuid,
    ) -> Plan {
        let route = match protocol {
            Protocol::Chat => Some(CachedRoute::Chat),
            Protocol::Responses => Some(CachedRoute::Responses),
            Protocol::Embeddings => Some(CachedRoute::Embeddings),
            // What the engine does there is its own business.
            Protocol::Passthrough => None,
        };
        let by_route = wish == Wish::None && route.is_some_and(|route| self.config.routes.contains(&route));
        if wish == Wish::Off || (wish == Wish::None && !by_route) {
            return Plan::Off;
        }
        if route.is_none() || call.stream {
            return if by_route { Plan::Off } else { Plan::Bypass };
        }
        let owner = if self.config.shared { Uuid::nil() } else { user };
        let [language, beta] =
            FORWARDED.map(|name| headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default());
        let circumstances =
            [owner.as_bytes(), self.engines.as_bytes(), protocol.route().as_bytes(), language, beta];
        let Some(digest) = digest::of(&circumstances, &call.body) else { return Plan::Bypass };
        let entry = Entry::new(&self.redis, &self.config, digest);
        if wish == Wish::Refresh { Plan::Refresh(entry) } else { Plan::Use(entry) }
    }

    /// The answer to a request, by way of the cache.
    pub(super) async fn answer(
        &self,
        plan: Plan,
        engine: impl Future<Output = Result<Answer, Fault>> + Send,
    ) -> Result<(Answer, Status), Fault> {
        let (entry, leads) = match plan {
            Plan::Off => return Ok((engine.await?, Status::Off)),
            Plan::Bypass => return Ok((engine.await?, Status::Bypass)),
            Plan::Refresh(entry) => (entry, false),
            Plan::Use(entry) => match self.look(&entry).await {
                Some(Found::Hit { age, body }) => return Ok((document(body), Status::Hit { age })),
                Some(found) => (entry, matches!(found, Found::Lead)),
                None => return Ok((engine.await?, Status::Bypass)),
            },
        };
        let lead =
            leads.then(|| Lead { entry: entry.clone(), lifecycle: self.lifecycle.clone(), over: false });
        let answer = match &lead {
            Some(lead) => lead.through(engine).await,
            None => engine.await,
        };
        let kept = answer.as_ref().ok().and_then(|answer| self.can_be_kept(answer));
        match (kept, lead) {
            (Some(body), lead) => {
                entry.say(Word::Keep(body)).await;
                lead.into_iter().for_each(Lead::done);
            }
            (None, Some(lead)) => {
                entry.say(Word::Alone).await;
                lead.done();
            }
            (None, None) => {}
        }
        Ok((answer?, Status::Miss))
    }

    /// Looks until there is an answer, or the engine has to be asked. `None` without Redis.
    async fn look(&self, entry: &Entry) -> Option<Found> {
        let deadline = Instant::now() + self.config.wait;
        let mut pause = LOOKS.0;
        loop {
            let found = match entry.find().await {
                Ok(Found::Wait) if Instant::now() >= deadline => Found::Alone,
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "the cache is not there");
                    return None;
                }
            };
            if !matches!(found, Found::Wait) {
                return Some(found);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// Success, complete, and not too large.
    fn can_be_kept<'a>(&self, answer: &'a Answer) -> Option<&'a Bytes> {
        /// Responses have a status.
        #[derive(Deserialize)]
        struct Complete<'a> {
            #[serde(borrow)]
            status: Option<std::borrow::Cow<'a, str>>,
        }
        let Answer::Whole { body, .. } = answer else { return None };
        if body.len() > self.config.max_bytes || EngineError::from_event(body).is_some() {
            return None;
        }
        let status = serde_json::from_slice::<Complete<'_>>(body).ok()?.status;
        status.is_none_or(|status| status == "completed").then_some(body)
    }
}

fn document(body: Bytes) -> Answer {
    Answer::Whole { content_type: HeaderValue::from_static("application/json"), body }
}

/// The duty to ask the engine for others. Dropped in the middle, which is the client leaving, it is given to the next.
struct Lead {
    entry: Entry,
    lifecycle: Lifecycle,
    over: bool,
}

impl Lead {
    /// Asks the engine, and lets those who wait know that it is being asked.
    async fn through<T>(&self, engine: impl Future<Output = T>) -> T {
        let still = async {
            loop {
                sleep(LEASE / 3).await;
                self.entry.say(Word::Still).await;
            }
        };
        tokio::select! {
            answer = engine => answer,
            never = still => never,
        }
    }

    fn done(mut self) {
        self.over = true;
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // Outside a runtime (its very end) the lease has to do.
        if !self.over && tokio::runtime::Handle::try_current().is_ok() {
            let entry = self.entry.clone();
            self.lifecycle.spawn_task(async move { entry.say(Word::Leave).await });
        }
    }
}
