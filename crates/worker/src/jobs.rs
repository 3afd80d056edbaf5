//! What each job does, one file for each.
//!
//! To add one: its payload in `job-specs`, a file here, and a line in `register`. To remove one, take these away again,
//! and its line in [`crate::schedule`].

pub mod account_mail;
pub mod check_credential;
pub mod cleanup;
pub mod deliver_webhook;
pub mod echo;
pub mod heartbeat;
pub mod keep_partitions;
pub mod process_webhook;
pub mod run;
pub mod send_email;
pub mod usage_rollup;

use job_specs::{
    AccountMail, CheckCredential, Cleanup, DeliverWebhook, Echo, Heartbeat, KeepPartitions, ProcessWebhook,
    Run, SendEmail, UsageRollup,
};
use jobs::Worker;

use crate::Context;

/// Tells the worker which function runs which kind.
pub(crate) fn register(worker: Worker, context: &Context) -> Worker {
    // Each handler gets the context by clone: it is a handful of reference counts.
    macro_rules! with_context {
        ($run:path) => {{
            let context = context.clone();
            move |attempt, job| $run(context.clone(), attempt, job)
        }};
    }
    worker
        .register::<AccountMail, _, _, _>(with_context!(account_mail::run))
        .register::<CheckCredential, _, _, _>(with_context!(check_credential::run))
        .register::<Cleanup, _, _, _>(with_context!(cleanup::run))
        .register::<DeliverWebhook, _, _, _>(with_context!(deliver_webhook::run))
        .register::<Echo, _, _, _>(with_context!(echo::run))
        .register::<Heartbeat, _, _, _>(with_context!(heartbeat::run))
        .register::<KeepPartitions, _, _, _>(with_context!(keep_partitions::run))
        .register::<ProcessWebhook, _, _, _>(with_context!(process_webhook::run))
        .register::<Run, _, _, _>(with_context!(run::run))
        .register::<SendEmail, _, _, _>(with_context!(send_email::run))
        .register::<UsageRollup, _, _, _>(with_context!(usage_rollup::run))
}
