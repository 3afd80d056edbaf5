//! `send_email`: one message, sent once.
//!
//! To delete it: this file, its lines in `jobs.rs`, its payload and its line in `job-specs`, and `mail.rs`, when nothing sends
//! mail any more: `account_mail` and `check_renewals` do.

use job_specs::SendEmail;
use jobs::{JobContext, JobError};

use crate::{Context, mail::Sent};

/// The job's id is the idempotency key: a second attempt after a lost answer sends nothing twice.
pub async fn run(context: Context, attempt: JobContext, mail: SendEmail) -> Result<Sent, JobError> {
    context.mailer.send(&mail, &format!("job-{}", attempt.id())).await
}
