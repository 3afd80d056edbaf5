//! What each job does, one file for each.
//!
//! To add one: its payload in `job-specs`, a file here, and a line in `register`. To remove one, take these away again,
//! and its line in [`crate::schedule`].

pub mod account_mail;
pub mod backfill_event_types;
pub mod check_credential;
pub mod check_renewals;
pub mod cleanup;
pub mod deliver_webhook;
pub mod echo;
pub mod heartbeat;
pub mod ingest_document;
pub mod keep_partitions;
pub mod process_webhook;
pub mod run;
pub mod send_email;
pub mod usage_rollup;

use jobs::{JobSpec as _, Worker};

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
        .queue(job_specs::IngestDocument::QUEUE, ingest_document::AT_A_TIME)
        .register::<job_specs::AccountMail, _, _, _>(with_context!(account_mail::run))
        .register::<job_specs::BackfillEventTypes, _, _, _>(with_context!(backfill_event_types::run))
        .register::<job_specs::CheckCredential, _, _, _>(with_context!(check_credential::run))
        .register::<job_specs::CheckRenewals, _, _, _>(with_context!(check_renewals::run))
        .register::<job_specs::Cleanup, _, _, _>(with_context!(cleanup::run))
        .register::<job_specs::DeliverWebhook, _, _, _>(with_context!(deliver_webhook::run))
        .register::<job_specs::Echo, _, _, _>(with_context!(echo::run))
        .register::<job_specs::Heartbeat, _, _, _>(with_context!(heartbeat::run))
        .register::<job_specs::IngestDocument, _, _, _>(with_context!(ingest_document::run))
        .register::<job_specs::KeepPartitions, _, _, _>(with_context!(keep_partitions::run))
        .register::<job_specs::ProcessWebhook, _, _, _>(with_context!(process_webhook::run))
        .register::<job_specs::Run, _, _, _>(with_context!(run::run))
        .register::<job_specs::SendEmail, _, _, _>(with_context!(send_email::run))
        .register::<job_specs::UsageRollup, _, _, _>(with_context!(usage_rollup::run))
}
