//! Rate limits.

use std::time::Duration;

use crate::{Problems, Rate, Vars, reader::Reader};

/// How long a permit for a stream is good without renewal. Longer than the head of an answer may be held, and than several
/// renewals, so that a lost one does no harm; when the process dies the permit ends by itself.
const STREAM_LEASE: Duration = Duration::from_secs(90);

/// The named rate limits.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Every request, per client.
    pub global: Rate,
    /// Login attempts, per address and account.
    pub login: Rate,
    /// Refresh tokens and one-time tokens presented, per address.
    pub refresh: Rate,
    /// Sign-ups, per address.
    pub signup: Rate,
    /// Mails with one-time tokens, per address and account.
    pub account_mail: Rate,
    /// AI requests, per user.
    pub ai_requests: Rate,
    /// AI tokens, per user.
    pub ai_tokens: Rate,
    /// AI tokens, per user and day.
    pub ai_tokens_daily: Rate,
    /// Jobs that a user starts.
    pub user_jobs: Rate,
    /// AI requests at a time, per user. The period is that of a lease: without renewal a permit ends after it.
    pub concurrent_streams: Rate,
    /// API replicas that share the limits.
    pub replicas: u32,
}

impl LimitsConfig {
    /// For commands that tell the API's replicas something: `user disable`.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let global = r.get("RATE_LIMIT_GLOBAL");
        let login = r.get("RATE_LIMIT_LOGIN");
        let refresh = r.get("RATE_LIMIT_REFRESH");
        let signup = r.get("RATE_LIMIT_SIGNUP");
        let account_mail = r.get("RATE_LIMIT_ACCOUNT_MAIL");
        let ai_requests = r.get("RATE_LIMIT_AI_REQUESTS");
        let ai_tokens = r.get("RATE_LIMIT_AI_TOKENS");
        let ai_tokens_daily = r.get("RATE_LIMIT_AI_TOKENS_DAILY");
        let user_jobs = r.get("RATE_LIMIT_USER_JOBS");
        let streams = r.number("AI_CONCURRENT_STREAMS", 1, 100_000);
        let replicas = r.number("API_REPLICAS", 1, 1_000);
        Some(Self {
            global: global?,
            login: login?,
            refresh: refresh?,
            signup: signup?,
            account_mail: account_mail?,
            ai_requests: ai_requests?,
            ai_tokens: ai_tokens?,
            ai_tokens_daily: ai_tokens_daily?,
            user_jobs: user_jobs?,
            concurrent_streams: Rate { limit: streams?, period: STREAM_LEASE },
            replicas: replicas? as u32,
        })
    }
}
