//! What the tests stand on.

mod accounts;
mod answer;
mod app;
mod certificates;
mod collector;
mod contract;
mod deployment;
mod process;
pub(crate) mod raw;
mod receiver;

pub(crate) use accounts::{PASSWORD, insert_unconfirmed_user, insert_user, mail_to, token_in};
pub(crate) use answer::Answer;
pub(crate) use app::{Persona, TestApp};
pub(crate) use certificates::{Certificates, certificates};
pub(crate) use collector::Collector;
pub(crate) use contract::Operation;
pub(crate) use deployment::{Deployment, metric, ready};
pub(crate) use process::{Process, free_port};
pub(crate) use raw::{exchange, read};
pub(crate) use receiver::Receiver;

use std::time::Duration;

/// Nothing that is only waited for is given up earlier: the machine may be busy with everything else.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds, for `patience` and on a busy machine longer; says what it waited for. Where the time is what is
/// tested: [`within`].
pub(crate) async fn eventually(what: &str, patience: Duration, condition: impl AsyncFnMut() -> bool) {
    within(what, patience.max(PATIENCE), condition).await;
}

/// Waits until `condition` holds, which must be so within `bound`.
pub(crate) async fn within(what: &str, bound: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let until = std::time::Instant::now() + bound;
    while !condition().await {
        assert!(std::time::Instant::now() < until, "{what}: not within {bound:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// True under `cargo xtask abuse`: cases that are long run in full, and their figures count.
pub(crate) fn in_full() -> bool {
    std::env::var_os("ABUSE_IN_FULL").is_some()
}
