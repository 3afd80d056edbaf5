//! The queue's promises, each as a test against a real Postgres.
#![expect(clippy::unwrap_used, reason = "tests")]

mod abuse;
mod claiming;
mod common;
mod cron;
mod draining;
mod enqueueing;
mod faults;
mod limits;
mod operating;
mod outcomes;
mod pressure;
mod processes;
mod property;
