//! Resumable runs.

use std::time::Duration;

use super::{DAY, S};
use crate::reader::Reader;

/// Resumable runs.
#[derive(Debug, Clone)]
pub struct RunsConfig {
    /// So many events of a run are kept.
    pub stream_events: u64,
    /// For so long after the last one.
    pub stream_ttl: Duration,
}

impl RunsConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let events = r.number("RUN_STREAM_EVENTS", 10, 1_000_000);
        let ttl = r.duration("RUN_STREAM_TTL", S(1), S(30 * DAY));
        Some(Self { stream_events: events?, stream_ttl: ttl? })
    }
}
