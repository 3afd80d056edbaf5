//! `send_email`: one message, sent once.
//!
//! To delete it: first what sends mail, `account_mail` and `check_renewals`; then this file, its lines in `jobs.rs`, its payload and
//! its line in `job-specs`, `mail.rs` and the mailer in `context.rs`, and `GET /v1/admin/mails` (`routes/admin/mails.rs`).

use job_specs::SendEmail;
use jobs::{JobContext, JobError};

use crate::{Context, mail::Sent};

/// The job's id is the idempotency key: a second attempt after a lost answer sends nothing twice.
pub async fn run(context: Context, attempt: JobContext, mail: SendEmail) -> Result<Sent, JobError> {
    context.mailer.send(&mail, &format!("job-{}", attempt.id())).await
}
