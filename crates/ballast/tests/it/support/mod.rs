//! What the tests stand on.

mod answer;
mod app;
mod certificates;
mod collector;
mod contract;
mod deployment;
mod process;
mod raw;
mod receiver;

pub(crate) use answer::Answer;
pub(crate) use app::{PASSWORD, Persona, TestApp};
pub(crate) use certificates::{Certificates, certificates};
pub(crate) use collector::Collector;
pub(crate) use contract::Operation;
pub(crate) use deployment::{Deployment, metric, ready};
pub(crate) use process::{Process, free_port};
pub(crate) use raw::{exchange, exchange_from, read};
pub(crate) use receiver::Receiver;

use std::time::Duration;

/// Waits until `condition` holds, for at most `patience`; says what it waited for.
pub(crate) async fn eventually(what: &str, patience: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let until = std::time::Instant::now() + patience;
    while !condition().await {
        assert!(std::time::Instant::now() < until, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// True under `cargo xtask abuse`: cases that are long run in full, and their figures count.
pub(crate) fn in_full() -> bool {
    std::env::var_os("ABUSE_IN_FULL").is_some()
}
