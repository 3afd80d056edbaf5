//! The table of policies.

use config::{LimitsConfig, Rate};

/// How a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Generic cell rate algorithm (ITU-T I.371): smooth refill, a full burst at the start. Right for rates.
    Gcra,
    /// A log of the admitted requests: never more than the limit in any period. Right for small counts such as logins,
    /// where GCRA admits nearly double in the first period.
    SlidingWindow,
    /// A counter that starts again with each period since the epoch. Right for quotas by day.
    FixedWindow,
}

/// A named limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Appears in headers, metrics and Redis keys.
    pub name: &'static str,
    /// How it counts.
    pub algorithm: Algorithm,
    /// How much, and in which period.
    pub rate: Rate,
}

impl Policy {
    /// The same policy with another rate, for an API key or a plan.
    #[must_use]
    pub fn with_rate(&self, rate: Rate) -> Self {
        Self { rate, ..self.clone() }
    }
}

/// All policies of this deployment.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Every request, per client.
    pub global: Policy,
    /// Login attempts, per address and account.
    pub login: Policy,
    /// Token refreshes, per address.
    pub refresh: Policy,
    /// Registrations, per address.
    pub signup: Policy,
    /// AI requests, per user.
    pub ai_requests: Policy,
    /// AI tokens, per user.
    pub ai_tokens: Policy,
    /// AI tokens, per user and day.
    pub ai_tokens_daily: Policy,
    /// The example for one route.
    pub custom: Policy,
    /// AI requests at a time, per user.
    pub concurrent_streams: u32,
}

impl Policies {
    /// The table, with the configured rates.
    pub fn from_config(config: &LimitsConfig) -> Self {
        use Algorithm::{FixedWindow, Gcra, SlidingWindow};
        let policy = |name, algorithm, rate| Policy { name, algorithm, rate };
        Self {
            global: policy("global", Gcra, config.global),
            login: policy("login", SlidingWindow, config.login),
            refresh: policy("refresh", Gcra, config.refresh),
            signup: policy("signup", SlidingWindow, config.signup),
            ai_requests: policy("ai-requests", Gcra, config.ai_requests),
            ai_tokens: policy("ai-tokens", Gcra, config.ai_tokens),
            ai_tokens_daily: policy("ai-tokens-daily", FixedWindow, config.ai_tokens_daily),
            custom: policy("custom", SlidingWindow, config.custom),
            concurrent_streams: config.concurrent_streams,
        }
    }

    /// Every policy.
    pub fn all(&self) -> [&Policy; 8] {
        [
            &self.global,
            &self.login,
            &self.refresh,
            &self.signup,
            &self.ai_requests,
            &self.ai_tokens,
            &self.ai_tokens_daily,
            &self.custom,
        ]
    }
}
