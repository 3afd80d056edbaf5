//! Rate limits.

use crate::{Problems, Rate, Vars, reader::Reader};

/// The named rate limits.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// Every request, per client.
    pub global: Rate,
    /// Login attempts, per address and account.
    pub login: Rate,
    /// Refreshes, per address.
    pub refresh: Rate,
    /// Registrations, per address.
    pub signup: Rate,
    /// AI requests, per user.
    pub ai_requests: Rate,
    /// AI tokens, per user.
    pub ai_tokens: Rate,
    /// AI tokens, per user and day.
    pub ai_tokens_daily: Rate,
    /// Example of a policy for one route.
    pub custom: Rate,
    /// AI requests at a time, per user.
    pub concurrent_streams: u32,
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
        let ai_requests = r.get("RATE_LIMIT_AI_REQUESTS");
        let ai_tokens = r.get("RATE_LIMIT_AI_TOKENS");
        let ai_tokens_daily = r.get("RATE_LIMIT_AI_TOKENS_DAILY");
        let custom = r.get("RATE_LIMIT_CUSTOM");
        let streams = r.number("AI_CONCURRENT_STREAMS", 1, 100_000);
        let replicas = r.number("API_REPLICAS", 1, 1_000);
        Some(Self {
            global: global?,
            login: login?,
            refresh: refresh?,
            signup: signup?,
            ai_requests: ai_requests?,
            ai_tokens: ai_tokens?,
            ai_tokens_daily: ai_tokens_daily?,
            custom: custom?,
            concurrent_streams: streams? as u32,
            replicas: replicas? as u32,
        })
    }
}
