//! The AI proxy: who asks is known and within limits, what they ask goes to the engine, what it answers comes back as it is.
//!
//! ```text
//! client ──▶ gate ──▶ read body ──▶ admission ──▶ engine ──▶ first event? ──▶ head ──▶ RelayBody ──▶ client
//!                     (once)        (1 round      (built anew,  (held back, so that      │
//!                                    trip)         breaker,      a failure still         └─ StreamWatch
//!                                                  1 retry)      gets its status)            └─ InFlight: the one guard
//! ```
//!
//! - `proxy` is that way, for all routes; the files under `routes` say what differs.
//! - `request` reads what must be known of the body, `reservation` is what is taken of the limits.
//! - The crate `engine` calls the engine; `failure` is everything that can go wrong and how it is told.
//! - `cache` answers from Redis what was answered before, where that is wanted; answers in one piece only.
//! - `watch` sees every event of a stream pass and keeps its timers. Bytes are forwarded by reference count; there is no task
//!   and no channel per stream.
//! - `in_flight` is dropped when the request is over, whatever the reason. Dropping the body drops the engine's answer, which
//!   cancels its request; the guard gives back the permit and leaves a usage row with `accounting`.
//!
//! `docs/ai-proxy.md` has the tables of timeouts and faults.

mod accounting;
mod cache;
mod estimate;
mod failure;
pub(crate) mod handover;
mod headers;
mod in_flight;
mod proxy;
mod request;
mod reservation;
mod routes;
mod source;
mod watch;

use std::sync::Arc;

use config::{AiConfig, ApiConfig};
use db::{Database, Redis};
use engine::Engines;
use limits::Limiter;
use runtime::{Clock, Lifecycle};

use self::{accounting::Accounting, cache::Cache, in_flight::OpenRequests};

pub(crate) use self::routes::DayUsage;
pub use self::routes::router;

/// The AI proxy; clones share everything.
#[derive(Debug, Clone)]
pub struct Ai {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: AiConfig,
    engines: Arc<Engines>,
    cache: Cache,
    accounting: Accounting,
    database: Database,
    limiter: Limiter,
    lifecycle: Lifecycle,
    clock: Clock,
    open: OpenRequests,
}

impl Ai {
    /// Sets up the HTTP client and the writer of usage rows. Connects nothing yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be built, or the engine's key cannot be a header.
    pub fn from_config(
        config: &ApiConfig,
        lifecycle: &Lifecycle,
        database: Database,
        redis: Redis,
        limiter: Limiter,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let inner = Inner {
            config: config.ai.clone(),
            engines: Arc::new(Engines::from_config(&config.ai)?),
            cache: Cache::from_config(config, redis, lifecycle.clone()),
            accounting: Accounting::new(database.clone(), lifecycle.clone()),
            database,
            limiter,
            lifecycle: lifecycle.clone(),
            clock,
            open: OpenRequests::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The engines, in order of preference.
    pub fn engines(&self) -> Vec<engine::Name> {
        self.inner.engines.names().cloned().collect()
    }

    /// The health check of an engine: what is wrong with it, without addresses.
    pub async fn check(&self, engine: &str) -> Result<(), String> {
        self.inner.engines.check(engine).await
    }

    /// See [`Engines::tend`].
    pub(crate) fn tend(&self) -> impl Future<Output = ()> + use<> {
        self.inner.engines.clone().tend(self.inner.lifecycle.clone())
    }

    /// How many requests to the engine are open now.
    pub fn open(&self) -> usize {
        self.inner.open.count()
    }

    /// Waits until the usage recorded so far by this process is in the database, at most two seconds. False when it is not.
    pub async fn flush_usage(&self) -> bool {
        self.inner.accounting.flush().await
    }

    fn accounting(&self) -> &Accounting {
        &self.inner.accounting
    }

    fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    fn open_requests(&self) -> &OpenRequests {
        &self.inner.open
    }
}

/// What is spoken on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// OpenAI's chat completions: unnamed events, `[DONE]` at the end.
    Chat,
    /// OpenAI's responses: named events, `response.completed` at the end.
    Responses,
    /// OpenAI's embeddings: no streams.
    Embeddings,
    /// Whatever the engine speaks.
    Passthrough,
}

impl Protocol {
    /// `gen_ai.operation.name` in OpenTelemetry.
    fn operation(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Responses => "generate_content",
            Self::Embeddings => "embeddings",
            Self::Passthrough => "passthrough",
        }
    }

    /// The route's template.
    fn route(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
            Self::Passthrough => "/v1/ai/{*path}",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// With a complete answer.
    Ok,
    /// The client left, or its session was ended.
    ClientAbort,
    /// The engine failed.
    EngineError,
    /// One of our timeouts.
    Timeout,
    /// The process shut down.
    Drained,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientAbort => "client_abort",
            Self::EngineError => "engine_error",
            Self::Timeout => "timeout",
            Self::Drained => "drained",
        }
    }
}
