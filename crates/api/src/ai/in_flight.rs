//! The one guard of a request to the engine: whatever ends it, this accounts for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use db::usage::UsageEvent;
use engine::{Asked, Exchange, Usage};
use tokio::time::Instant;
use tracing::{Span, field::Empty};
use uuid::Uuid;

use super::{Ai, Outcome, Protocol, failure::Stop, request::Call, reservation::Reservation};
use crate::admission::Caller;

/// The engine of a request that reached none.
const NO_ENGINE: &str = "none";
/// The engine of a request that the cache answered: a hit is not an engine's merit.
const CACHE: &str = "cache";

/// A request to the engine that is not over. Ends as [`Outcome::ClientAbort`] when dropped without another word: the handler,
/// or the answer's body, is dropped when the client leaves.
#[derive(Debug)]
pub(super) struct InFlight {
    ai: Ai,
    reservation: Reservation,
    asked: Asked,
    protocol: Protocol,
    user_id: Uuid,
    api_key_id: Option<Uuid>,
    request_id: Arc<str>,
    model: Box<str>,
    prompt_estimate: u64,
    started: Instant,
    first_event: Option<Instant>,
    last_event: Option<Instant>,
    events: u64,
    usage: Option<Usage>,
    /// The cache answered.
    cached: bool,
    over: bool,
    /// Lasts as long as the request; none without traces.
    span: Span,
}

impl InFlight {
    pub(super) fn begin(
        ai: &Ai,
        protocol: Protocol,
        caller: &Caller,
        call: &Call,
        asked: Asked,
        reservation: Reservation,
        started: Instant,
    ) -> Self {
        ai.open_requests().enter(protocol);
        Self {
            ai: ai.clone(),
            reservation,
            asked,
            protocol,
            user_id: caller.user_id,
            api_key_id: caller.api_key_id,
            request_id: caller.request_id.clone(),
            model: call.model.clone(),
            prompt_estimate: call.prompt_tokens,
            started,
            first_event: None,
            last_event: None,
            events: 0,
            usage: None,
            cached: false,
            over: false,
            span: span(protocol, &call.model),
        }
    }

    /// The request in its trace: the engine's parent.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// An event with data arrived.
    pub(super) fn event(&mut self, now: Instant) {
        self.first_event.get_or_insert(now);
        self.last_event = Some(now);
        self.events += 1;
    }

    /// Who asks.
    pub(super) fn user_id(&self) -> Uuid {
        self.user_id
    }

    /// The request's id.
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// When the request began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The engine told what was used. The last word counts: some engines repeat it with every event.
    pub(super) fn report(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// The cache answered, so the engine charges nothing.
    pub(super) fn answered_from_cache(&mut self) {
        self.cached = true;
        self.usage = Some(Usage { prompt: 0, completion: 0 });
    }

    /// See [`Reservation::renew`].
    pub(super) fn renew(&self) {
        self.reservation.renew();
    }

    /// See [`Reservation::is_revoked`].
    pub(super) fn is_revoked(&self) -> bool {
        self.reservation.is_revoked()
    }

    /// It is over: accounts for it and gives the permit back. Only the first call counts.
    ///
    /// Called before the client can see the end of its answer, so that a client that then asks for its usage finds it.
    pub(super) fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let took = self.started.elapsed();
        let first = self.first_event.map(|at| at.duration_since(self.started));
        let (used, estimated) = self.count(outcome);
        let engine = self.asked.name();
        let engine = if self.cached { CACHE } else { engine.as_deref().unwrap_or(NO_ENGINE) };
        self.reservation.used(used.prompt + used.completion);
        self.reservation.settle();
        let events = self.first_event.zip(self.last_event).map(|(first, last)| (first, last, self.events));
        let exchange = Exchange {
            operation: self.protocol.operation(),
            model: &self.model,
            engine,
            outcome: outcome.as_str(),
            began: self.started,
            events,
            usage: used,
        };
        self.ai.inner.engines.record(&exchange, took);
        self.span.record("gen_ai.usage.input_tokens", used.prompt);
        self.span.record("gen_ai.usage.output_tokens", used.completion);
        self.span.record("outcome", outcome.as_str());
        tracing::info!(
            request_id = %self.request_id,
            operation = self.protocol.operation(),
            model = %self.model,
            engine,
            outcome = outcome.as_str(),
            prompt_tokens = used.prompt,
            completion_tokens = used.completion,
            estimated,
            cached = self.cached,
            duration_ms = took.as_millis() as u64,
            first_token_ms = first.map(|first| first.as_millis() as u64),
            "ai request ended"
        );
        self.ai.accounting().record(UsageEvent {
            id: Uuid::now_v7(),
            occurred_at: self.ai.clock().now(),
            user_id: self.user_id,
            api_key_id: self.api_key_id,
            request_id: self.request_id.to_string(),
            route: self.protocol.route().to_owned(),
            model: self.model.to_string(),
            engine: engine.to_owned(),
            prompt_tokens: used.prompt as i64,
            completion_tokens: used.completion as i64,
            estimated,
            cached: self.cached,
            outcome: outcome.as_str(),
            first_token_ms: first.map(millis),
            duration_ms: millis(took),
        });
    }

    /// True after [`Self::end`].
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// It failed: as [`Self::end`], with the cause in the log.
    pub(super) fn fail(&mut self, stop: &Stop) {
        if !self.over {
            let mut cause = None;
            if let Stop::Engine(fault) = stop {
                fault.record(self.asked.name().as_deref().unwrap_or(NO_ENGINE));
                cause = fault.cause();
            }
            tracing::warn!(request_id = %self.request_id, fault = %stop.code(), cause, "ai request failed");
        }
        self.end(stop.outcome());
    }

    /// What it cost, and whether that is only our estimate.
    fn count(&self, outcome: Outcome) -> (Usage, bool) {
        // An answer in one piece has no events.
        let is_answered = outcome == Outcome::Ok;
        let is_left = outcome == Outcome::ClientAbort && self.asked.name().is_some();
        match self.usage {
            Some(usage) => (usage, false),
            // Whatever ends it before the engine said anything, it costs nothing; unless the client left while an engine was at work.
            None if self.events == 0 && !is_answered && !is_left => {
                (Usage { prompt: 0, completion: 0 }, true)
            }
            // An event is about a token.
            None => (Usage { prompt: self.prompt_estimate, completion: self.events }, true),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.end(Outcome::ClientAbort);
        self.ai.open_requests().leave(self.protocol);
    }
}

/// OpenTelemetry's span of a generative AI client, <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>. It keeps
/// the request's own span open, which would otherwise end with the answer's head.
fn span(protocol: Protocol, model: &str) -> Span {
    if runtime::trace_context::current().is_none() {
        return Span::none();
    }
    tracing::info_span!(
        "ai",
        otel.name = format!("{} {model}", protocol.operation()),
        otel.kind = "client",
        gen_ai.operation.name = protocol.operation(),
        gen_ai.request.model = model,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        outcome = Empty,
    )
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// How many requests to the engine are open.
#[derive(Debug, Default)]
pub(super) struct OpenRequests(AtomicUsize);

impl OpenRequests {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(&self, protocol: Protocol) {
        self.0.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!("ai_requests_open", "operation" => protocol.operation()).increment(1);
    }

    fn leave(&self, protocol: Protocol) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("ai_requests_open", "operation" => protocol.operation()).decrement(1);
    }
}
