//! The worker role: what each job does, and when.
//!
//! - [`schedule`]: the one table of cron lines.
//! - [`jobs`]: one file for each job, and the list of them.
//! - [`Context`]: what jobs work with.
//!
//! The queue itself (leases, retries, draining) is the `jobs` crate; payloads and rules are in `job-specs`.

mod backfill;
mod context;
mod embeddings;
pub mod jobs;
mod mail;
pub mod schedule;
mod split;
mod start;
mod subscriptions;

pub use context::{Context, OpenCredential};
pub use mail::Mailer;
pub use start::{Handle, start, worker};
