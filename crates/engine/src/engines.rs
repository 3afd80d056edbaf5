//! All engines: who is asked, and asked again.

use std::time::Duration;

use config::AiConfig;
use tokio::time::{Instant, timeout_at};

use crate::{Answer, Fault, Request, Timer, Want, budget::RetryBudget, engine::Engine};

/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The engines, and how to talk to them. Made once for a process; connects nothing before the first call.
#[derive(Debug)]
pub struct Engines {
    engine: Engine,
    budget: RetryBudget,
    config: AiConfig,
}

impl Engines {
    /// The engines of this configuration.
    ///
    /// # Errors
    /// When the HTTP client cannot be built, or a key cannot be a header.
    pub fn from_config(config: &AiConfig) -> anyhow::Result<Self> {
        Ok(Self {
            engine: Engine::from_config("default", config)?,
            budget: RetryBudget::default(),
            config: config.clone(),
        })
    }

    /// Asks an engine. For a stream, waits for its first event, so that whatever goes wrong before it can still be told with
    /// a status, or tried again. Dropped in the middle, the request to the engine is cancelled.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn call(&self, request: Request, want: Want) -> Result<Answer, Fault> {
        let (timer, limit) = match want {
            Want::Stream => (Timer::FirstToken, self.config.first_token_timeout),
            Want::Json | Want::Either => (Timer::Response, self.config.response_timeout),
        };
        let deadline = Instant::now() + limit;
        self.budget.request();
        let mut retries = self.config.retries;
        let engine = &self.engine;
        loop {
            if !engine.breaker.allows() {
                return Err(Fault::BreakerOpen);
            }
            request.asked.set(&engine.name);
            let attempt = timeout_at(deadline, engine.attempt(&request, want)).await;
            let result = attempt.unwrap_or(Err(Fault::Timeout(timer)));
            match &result {
                Err(fault) if fault.blames_engine() => engine.breaker.failure(),
                _ => engine.breaker.success(),
            }
            match result {
                Err(fault) if fault.is_retryable() && retries > 0 && self.budget.retry() => {
                    retries -= 1;
                    metrics::counter!("ai_engine_retries_total").increment(1);
                    tracing::debug!(fault = %fault.code(), cause = fault.cause(), "the engine is asked again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// The health check: does it answer at all? Its errors tell no address.
    ///
    /// # Errors
    /// What is wrong, in words for the operator.
    pub async fn check(&self) -> Result<(), String> {
        self.engine.check().await
    }
}
