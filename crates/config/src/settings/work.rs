//! The queue and e-mail.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::{DAY, MS, S};
use crate::reader::Reader;

/// The queue runner.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// Jobs at a time.
    pub concurrency: usize,
    /// Fallback polling.
    pub poll_interval: Duration,
    /// A worker silent for so long is dead.
    pub lease: Duration,
    /// Keep finished jobs for so long.
    pub retention: Duration,
}

/// How long things are kept before the clean-up deletes them.
#[derive(Debug, Clone)]
pub struct RetentionConfig {
    /// Security events.
    pub audit_log: Duration,
    /// Single AI requests, once they are counted in the sums by hour.
    pub usage_events: Duration,
}

/// E-mail.
#[derive(Debug, Clone)]
pub struct MailConfig {
    /// Sender.
    pub from: String,
    /// Resend's key; without it mail goes to the log.
    pub resend_api_key: Option<SecretString>,
    /// The front end that links in mails lead to.
    pub app_url: Option<Url>,
}

impl RetentionConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let audit_log = r.duration("AUDIT_LOG_RETENTION", S(DAY), S(3_650 * DAY));
        let usage_events = r.duration("USAGE_EVENT_RETENTION", S(DAY), S(3_650 * DAY));
        Some(Self { audit_log: audit_log?, usage_events: usage_events? })
    }
}

impl QueueConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let concurrency = r.number("WORKER_CONCURRENCY", 1, 1_000);
        let poll_interval = r.duration("WORKER_POLL_INTERVAL", MS(10), S(60));
        let lease = r.duration("WORKER_LEASE", S(1), S(600));
        let retention = r.duration("JOB_RETENTION", S(DAY), S(365 * DAY));
        Some(Self {
            concurrency: concurrency? as usize,
            poll_interval: poll_interval?,
            lease: lease?,
            retention: retention?,
        })
    }
}
