//! All engines: who is asked, and who is asked next.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use config::{AiConfig, ModelRule};
use runtime::{Lifecycle, Phase};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    Answer, Exchange, Fault, Name, Request, Timer, Want, budget::RetryBudget, engine::Engine, fault::Again,
    measure::Models,
};

/// Before the same engine is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// An engine that was not well must answer a short question within this time before a request waits for it, if there is another
/// engine for the request; within a quarter of the request's own time, if that is less.
const PROBE_TIME: Duration = Duration::from_secs(1);

/// How often idle connections are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The engines, and how to talk to them. Made once for a process; connects nothing before the first call.
#[derive(Debug)]
pub struct Engines {
    pub(crate) list: Box<[Engine]>,
    /// Positions of all of them.
    all: Box<[usize]>,
    /// Which have which models; empty: any has any.
    models: Box<[(ModelRule, Box<[usize]>)]>,
    budget: RetryBudget,
    labels: Models,
    config: AiConfig,
}

impl Engines {
    /// The engines of this configuration.
    ///
    /// # Errors
    /// When the HTTP client cannot be built, or a key cannot be a header.
    pub fn from_config(config: &AiConfig) -> anyhow::Result<Self> {
        let engines = config.engines.iter().map(|engine| Engine::from_config(engine, config));
        let list = engines.collect::<anyhow::Result<Box<[_]>>>()?;
        let position = |name: &String| list.iter().position(|engine| *engine.name == **name);
        let models = config.models.iter().map(|rule| {
            let who: Option<Box<[usize]>> = rule.engines.iter().map(position).collect();
            Ok((rule.clone(), who.context("ENGINE_MODELS names an engine that is not there")?))
        });
        let models = models.collect::<anyhow::Result<_>>()?;
        let all = (0..list.len()).collect();
        let (budget, labels) = (RetryBudget::default(), Models::default());
        Ok(Self { list, all, models, budget, labels, config: config.clone() })
    }

    /// Their names, in order of preference.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.list.iter().map(|engine| &engine.name)
    }

    /// Whether there is an engine for this model. No model at all (an empty name) is any engine's.
    pub fn serves(&self, model: &str) -> bool {
        self.candidates(model).is_some()
    }

    /// True when what the one engine says of its models is all there is to say.
    pub(crate) fn is_single(&self) -> bool {
        self.list.len() == 1 && self.models.is_empty()
    }

    /// Positions of those that have a model, in order of preference.
    pub(crate) fn candidates(&self, model: &str) -> Option<&[usize]> {
        if self.models.is_empty() || model.is_empty() {
            return Some(&self.all);
        }
        self.models.iter().find(|(rule, _)| rule.matches(model)).map(|(_, who)| &**who)
    }

    /// The position of this one.
    fn only(&self, name: &str) -> Option<&[usize]> {
        let position = self.list.iter().position(|engine| *engine.name == *name)?;
        self.all.get(position..=position)
    }

    /// Asks an engine: the first that has the model and is well. For a stream, waits for its first event, so that whatever goes
    /// wrong before it can still be told with a status, or tried again: with the next engine, or with the same when there is no
    /// other. Dropped in the middle, the request to the engine is cancelled.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn call(&self, request: Request, want: Want) -> Result<Answer, Fault> {
        let candidates = match &request.only {
            Some(name) => self.only(name),
            None => self.candidates(&request.model),
        };
        let Some(candidates) = candidates else { return Err(Fault::UnknownModel(request.model)) };
        let (timer, limit) = match want {
            Want::Stream => (Timer::FirstToken, self.config.first_token_timeout),
            Want::Json | Want::Either => (Timer::Response, self.config.response_timeout),
        };
        let deadline = Instant::now() + limit;
        let probe = PROBE_TIME.min(limit / 4);
        self.budget.request();
        let mut retries = self.config.retries;
        let mut asked = Vec::new();
        let mut next = self.next(candidates, &asked, Again::Another, probe).await;
        loop {
            let Some(position) = next else { return Err(Fault::BreakerOpen) };
            let engine = &self.list[position];
            request.asked.set(&engine.name);
            let attempt = timeout_at(deadline, engine.attempt(&request, want)).await;
            let result = attempt.unwrap_or(Err(Fault::Timeout(timer)));
            let fault = match result {
                Ok(answer) => {
                    engine.breaker.success();
                    return Ok(answer);
                }
                Err(fault) if fault.blames_engine() => {
                    engine.breaker.failure();
                    fault
                }
                Err(fault) => {
                    engine.breaker.success();
                    fault
                }
            };
            fault.record_attempt(&engine.name);
            asked.push(position);
            let Some(again) = fault.retry().filter(|_| retries > 0) else { return Err(fault) };
            if again == Again::Another && candidates.iter().all(|position| asked.contains(position)) {
                return Err(fault);
            }
            if !self.budget.retry() {
                return Err(fault);
            }
            next = self.next(candidates, &asked, again, probe).await;
            let Some(then) = next else { return Err(fault) };
            retries -= 1;
            let to = &self.list[then].name;
            metrics::counter!("ai_engine_retries_total", "engine" => to.to_string()).increment(1);
            tracing::info!(engine = %engine.name, next = %to, fault = %fault.code(), cause = fault.cause(), "asking again");
            if then == position {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Who is asked next: the first that was not asked yet and is well, else, if that is allowed, one that was.
    async fn next(
        &self,
        candidates: &[usize],
        asked: &[usize],
        again: Again,
        probe: Duration,
    ) -> Option<usize> {
        for position in candidates.iter().filter(|position| !asked.contains(position)) {
            let engine = &self.list[*position];
            if engine.breaker.allows() && (candidates.len() == 1 || self.is_well(engine, probe).await) {
                return Some(*position);
            }
        }
        let mut again = candidates.iter().filter(|position| again == Again::Any && asked.contains(position));
        again.find(|position| self.list[**position].breaker.allows()).copied()
    }

    /// Whether a request may wait for this engine while there are others. One that was not well is asked for its models first.
    async fn is_well(&self, engine: &Engine, probe: Duration) -> bool {
        if !engine.breaker.is_open() {
            return true;
        }
        let well = matches!(timeout(probe, Box::pin(engine.check())).await, Ok(Ok(())));
        if !well {
            engine.breaker.failure();
        }
        well
    }

    /// Puts an exchange that is over, and took so long, into the metrics.
    pub fn record(&self, exchange: &Exchange<'_>, took: Duration) {
        exchange.record(&self.labels, took);
    }

    /// Closes connections that nobody has used for a while, for as long as the process takes new work.
    pub async fn tend(self: Arc<Self>, lifecycle: Lifecycle) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => self.list.iter().for_each(Engine::close_idle),
                () = lifecycle.reached(Phase::Closing) => return,
            }
        }
    }

    /// The health check of one engine: does it answer at all? Its errors tell no address.
    ///
    /// # Errors
    /// What is wrong, in words for the operator.
    pub async fn check(&self, name: &str) -> Result<(), String> {
        match self.list.iter().find(|engine| *engine.name == *name) {
            Some(engine) => engine.check().await,
            None => Err("there is no such engine".to_owned()),
        }
    }
}
