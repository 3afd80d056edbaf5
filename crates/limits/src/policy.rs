//! The table of policies, and what an API key may have instead.

use std::fmt;

use config::{LimitsConfig, Rate};

use crate::{Charge, Permit};

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
    /// Leases that are given back: so many at a time. The period of its rate is the lease's.
    Permits,
}

impl Algorithm {
    /// Its name, for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gcra => "gcra",
            Self::SlidingWindow => "sliding-window",
            Self::FixedWindow => "fixed-window",
            Self::Permits => "permits",
        }
    }
}

/// Whose bucket a policy charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// The user or the API key; the address of who has shown neither: `user:ID`, `key:ID`, `ip:ADDRESS`.
    Client,
    /// The user, or the API key where it has a limit of its own: `user:ID`, `key:ID`.
    Caller,
    /// The address: `ip:ADDRESS`.
    Address,
    /// The address and the account that is tried, of which Redis knows a pseudonym only.
    AddressAndAccount,
}

/// A named limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Appears in headers, metrics and Redis keys.
    pub name: &'static str,
    /// How it counts.
    pub algorithm: Algorithm,
    /// Whose bucket it charges.
    pub per: Per,
    /// How much, and in which period.
    pub rate: Rate,
}

impl Policy {
    /// The same policy with another rate, for an API key or a plan.
    #[must_use]
    pub fn with_rate(&self, rate: Rate) -> Self {
        Self { rate, ..self.clone() }
    }

    /// So many units for this subject.
    pub fn charge(&self, subject: impl Into<String>, cost: u64) -> Charge {
        Charge { policy: self.clone(), subject: subject.into(), cost }
    }

    /// A permit for this subject; `id` tells it from the others.
    pub fn permit(&self, subject: impl Into<String>, id: impl Into<String>) -> Permit {
        Permit {
            policy: self.name,
            subject: subject.into(),
            id: id.into(),
            limit: u32::try_from(self.rate.limit).unwrap_or(u32::MAX),
            lease: self.rate.period,
        }
    }

    /// The limit as it is written in the configuration, and for an API key: `100/15m`, or `10` for permits.
    pub fn limit_text(&self) -> String {
        match self.algorithm {
            Algorithm::Permits => self.rate.limit.to_string(),
            _ => self.rate.to_string(),
        }
    }

    fn parse_limit(&self, text: &str) -> Result<Rate, String> {
        match self.algorithm {
            Algorithm::Permits => match text.trim().parse() {
                Ok(limit @ 1..=100_000) => Ok(Rate { limit, ..self.rate }),
                _ => Err("expected a number from 1 to 100000".to_owned()),
            },
            _ => text.trim().parse(),
        }
    }
}

/// All policies of this deployment.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Every request, per client.
    pub global: Policy,
    /// Login attempts, per address and account.
    pub login: Policy,
    /// Refresh tokens and one-time tokens that are presented, per address.
    pub refresh: Policy,
    /// Sign-ups, per address.
    pub signup: Policy,
    /// Mails with one-time tokens that are asked for, per address and account.
    pub account_mail: Policy,
    /// AI requests, per user.
    pub ai_requests: Policy,
    /// AI tokens, per user.
    pub ai_tokens: Policy,
    /// AI tokens, per user and day.
    pub ai_tokens_daily: Policy,
    /// Jobs that a user starts: the example of a policy for one route.
    pub user_jobs: Policy,
    /// AI requests at a time, per user.
    pub concurrent_streams: Policy,
}

impl Policies {
    /// The table, with the configured rates.
    pub fn from_config(config: &LimitsConfig) -> Self {
        use Algorithm::{FixedWindow, Gcra, Permits, SlidingWindow};
        use Per::{Address, AddressAndAccount, Caller, Client};
        let policy = |name, algorithm, per, rate| Policy { name, algorithm, per, rate };
        Self {
            global: policy("global", Gcra, Client, config.global),
            login: policy("login", SlidingWindow, AddressAndAccount, config.login),
            refresh: policy("refresh", Gcra, Address, config.refresh),
            signup: policy("signup", SlidingWindow, Address, config.signup),
            account_mail: policy("account-mail", SlidingWindow, AddressAndAccount, config.account_mail),
            ai_requests: policy("ai-requests", Gcra, Caller, config.ai_requests),
            ai_tokens: policy("ai-tokens", Gcra, Caller, config.ai_tokens),
            ai_tokens_daily: policy("ai-tokens-daily", FixedWindow, Caller, config.ai_tokens_daily),
            user_jobs: policy("user-jobs", SlidingWindow, Caller, config.user_jobs),
            concurrent_streams: policy("concurrent-streams", Permits, Caller, config.concurrent_streams),
        }
    }

    /// Every policy.
    pub fn all(&self) -> [&Policy; 10] {
        [
            &self.global,
            &self.login,
            &self.refresh,
            &self.signup,
            &self.account_mail,
            &self.ai_requests,
            &self.ai_tokens,
            &self.ai_tokens_daily,
            &self.user_jobs,
            &self.concurrent_streams,
        ]
    }

    /// The policy of this name.
    pub fn find(&self, name: &str) -> Option<&Policy> {
        self.all().into_iter().find(|policy| policy.name == name)
    }
}

/// Limits of its own that an API key has, instead of its user's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides(Vec<(&'static str, Rate)>);

/// Why a limit cannot be an API key's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverrideProblem {
    /// The name that was given.
    pub policy: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for OverrideProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.policy, self.message)
    }
}

impl Overrides {
    /// Reads names of policies with limits as [`Policy::limit_text`] writes them. What cannot be used is told, and left out.
    pub fn parse<'a>(
        policies: &Policies,
        given: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> (Self, Vec<OverrideProblem>) {
        let (mut own, mut problems) = (Vec::new(), Vec::new());
        let possible = || policies.all().into_iter().filter(|p| matches!(p.per, Per::Client | Per::Caller));
        for (name, text) in given {
            let found = possible().find(|policy| policy.name == name);
            let rate = found.ok_or_else(|| {
                let names: Vec<_> = possible().map(|policy| policy.name).collect();
                format!(
                    "no policy that an API key may have a limit of its own for; there are: {}",
                    names.join(", ")
                )
            });
            match rate.and_then(|policy| Ok((policy.name, policy.parse_limit(text)?))) {
                Ok(one) => own.push(one),
                Err(message) => problems.push(OverrideProblem { policy: name.to_owned(), message }),
            }
        }
        (Self(own), problems)
    }

    /// The policy with the limit that holds here; `None` when it is the usual one.
    pub fn apply(&self, policy: &Policy) -> Option<Policy> {
        let (_, rate) = self.0.iter().find(|(name, _)| *name == policy.name)?;
        Some(policy.with_rate(*rate))
    }
}
