//! What can go wrong when a job is enqueued or looked at.

/// The id of a job.
pub type JobId = i64;

/// A call of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The serialised payload is too large: jobs carry references, not documents.
    #[error("the payload has {bytes} bytes, at most {} are allowed", crate::MAX_PAYLOAD_BYTES)]
    PayloadTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The payload cannot be stored.
    #[error("the payload cannot be stored: {0}")]
    InvalidPayload(String),
    /// A queue or kind name that is empty, too long or has characters other than letters, digits, `_`, `-`, `.`.
    #[error("{0:?} is not a name for a queue or a kind")]
    InvalidName(String),
    /// Another worker has taken the job: roll back and stop.
    #[error("the job is no longer ours: its lease was lost")]
    LeaseLost,
    /// The database did not answer in time; the connection was closed.
    #[error("the database did not answer within {0:?}")]
    Deadline(std::time::Duration),
    /// A cron line that cannot be used.
    #[error("cron line {name}: {reason}")]
    InvalidCronLine {
        /// The line's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}
