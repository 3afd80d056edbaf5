//! `send_email`: one message, sent once.

use job_specs::SendEmail;
use jobs::{JobContext, JobError};

use crate::{Context, mail::Sent};

/// The job's id is the idempotency key: a second attempt after a lost answer sends nothing twice.
pub async fn run(context: Context, attempt: JobContext, mail: SendEmail) -> Result<Sent, JobError> {
    context.mailer.send(&mail, &format!("job-{}", attempt.id())).await
}
