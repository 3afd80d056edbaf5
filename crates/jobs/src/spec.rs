//! What a kind of job is: its payload, its name, and the rules that go with it.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use crate::Unique;

/// A kind of job: the payload is the struct, everything else has a default.
///
/// The name and the payload's shape are stored in the database. Add fields with `#[serde(default)]` and never rename a
/// kind while jobs of it may be waiting: an older or newer binary reads the same rows.
pub trait JobSpec: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Stored with every job; `snake_case`.
    const NAME: &'static str;
    /// Which queue its jobs go to: `default`, or one of its own for a kind with a global limit.
    const QUEUE: &'static str = if Self::GLOBAL_LIMIT.is_some() { Self::NAME } else { "default" };
    /// Who goes first within the queue.
    const PRIORITY: Priority = Priority::Normal;
    /// After so many failed attempts the job is discarded. A worker that dies counts as an attempt.
    const MAX_ATTEMPTS: i16 = 10;
    /// One attempt may take so long.
    const TIMEOUT: Duration = Duration::from_secs(60);
    /// So many jobs of this kind run at a time, over all workers together. Such a kind should have a queue of its own, so
    /// that its waiting jobs stand in nobody's way; in queues other than its own its jobs are found within a third of the
    /// lease only.
    const GLOBAL_LIMIT: Option<u16> = None;

    /// Makes jobs of this kind unique unless [`crate::EnqueueOptions::unique`] says otherwise.
    fn unique(&self) -> Option<Unique> {
        None
    }
}

/// Who goes first within a queue. Within a level the job that is due longest goes first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before everything else.
    Urgent = 0,
    /// Before normal work.
    High = 1,
    /// The default.
    #[default]
    Normal = 2,
    /// When nothing else is due.
    Low = 3,
}

impl Priority {
    pub(crate) fn from_db(value: i16) -> Self {
        match value {
            0 => Self::Urgent,
            1 => Self::High,
            3 => Self::Low,
            _ => Self::Normal,
        }
    }
}
