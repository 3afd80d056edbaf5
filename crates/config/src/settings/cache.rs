//! The cache of AI answers.

use std::time::Duration;

use super::{DAY, S};
use crate::reader::Reader;

/// Answers that are kept in Redis, for requests that ask for it.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Routes whose requests use the cache without asking for it.
    pub routes: Vec<CachedRoute>,
    /// How long an answer is good.
    pub ttl: Duration,
    /// Largest answer that is kept.
    pub max_bytes: usize,
    /// So many answers are kept; the cache is full with so many times the largest.
    pub places: u64,
    /// How long a request waits for the same one that is under way.
    pub wait: Duration,
    /// Users get each other's answers.
    pub shared: bool,
}

/// A route whose answers can be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachedRoute {
    /// Chat completions.
    Chat,
    /// Responses.
    Responses,
    /// Embeddings.
    Embeddings,
}

impl CacheConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let routes = r.list("AI_CACHE_ROUTES", |name| match name {
            "chat" => Ok(CachedRoute::Chat),
            "responses" => Ok(CachedRoute::Responses),
            "embeddings" => Ok(CachedRoute::Embeddings),
            _ => Err("expected a list of chat, responses, embeddings".to_owned()),
        });
        let ttl = r.duration("AI_CACHE_TTL", S(1), S(30 * DAY));
        let max_bytes = r.number("AI_CACHE_MAX_BYTES", 1_024, 16_777_216);
        let places = r.number("AI_CACHE_PLACES", 1, 10_000_000);
        let wait = r.duration("AI_CACHE_WAIT", Duration::ZERO, S(300));
        let shared = r.get("AI_CACHE_SHARED");
        Some(Self {
            routes: routes?,
            ttl: ttl?,
            max_bytes: max_bytes? as usize,
            places: places?,
            wait: wait?,
            shared: shared?,
        })
    }
}
