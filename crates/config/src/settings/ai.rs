//! The AI engine.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::{CacheConfig, DAY, HOUR, MS, S, http_url};
use crate::reader::Reader;

/// The AI engine.
#[derive(Debug, Clone)]
pub struct AiConfig {
    /// Base URL with its `/v1`, without a trailing slash.
    pub engine_url: Url,
    /// Sent to the engine.
    pub engine_api_key: Option<SecretString>,
    /// TCP and TLS.
    pub connect_timeout: Duration,
    /// How long the answer's head is held back.
    pub header_hold: Duration,
    /// Until the first event.
    pub first_token_timeout: Duration,
    /// Silence inside a stream.
    pub idle_timeout: Duration,
    /// Longest stream.
    pub stream_timeout: Duration,
    /// Longest answer that is not a stream.
    pub response_timeout: Duration,
    /// Retries before the first event.
    pub retries: u32,
    /// Comment after so much silence.
    pub heartbeat: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Answers that are kept.
    pub cache: CacheConfig,
}

impl AiConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let engine_url = r.with("ENGINE_URL", http_url);
        let engine_api_key = r.get::<String>("ENGINE_API_KEY").map(SecretString::from);
        let connect_timeout = r.duration("ENGINE_CONNECT_TIMEOUT", MS(50), S(60));
        let header_hold = r.duration("ENGINE_HEADER_HOLD", MS(100), S(60));
        let first_token_timeout = r.duration("ENGINE_FIRST_TOKEN_TIMEOUT", MS(100), S(900));
        let idle_timeout = r.duration("ENGINE_IDLE_TIMEOUT", MS(100), S(900));
        let stream_timeout = r.duration("ENGINE_STREAM_TIMEOUT", S(1), S(DAY));
        let response_timeout = r.duration("ENGINE_RESPONSE_TIMEOUT", S(1), S(HOUR));
        let retries = r.number("ENGINE_RETRIES", 0, 3);
        let heartbeat = r.duration("STREAM_HEARTBEAT", MS(50), S(300));
        let max_body = r.number("AI_MAX_BODY_BYTES", 1_024, 268_435_456);
        let cache = CacheConfig::read(r);
        Some(Self {
            engine_url: engine_url?,
            engine_api_key,
            connect_timeout: connect_timeout?,
            header_hold: header_hold?,
            first_token_timeout: first_token_timeout?,
            idle_timeout: idle_timeout?,
            stream_timeout: stream_timeout?,
            response_timeout: response_timeout?,
            retries: retries? as u32,
            heartbeat: heartbeat?,
            max_body_bytes: max_body? as usize,
            cache: cache?,
        })
    }
}
