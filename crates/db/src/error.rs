//! What can go wrong with Postgres, sorted by what the caller can do about it.

use sqlx::error::ErrorKind;

/// The result of a query function.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed database call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection in time, or the server is gone: try again later.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The call took longer than its deadline; its connection was closed.
    #[error("the database did not answer in time")]
    Deadline,
    /// Anything else; mostly a bug.
    #[error("the query failed")]
    Query(#[source] sqlx::Error),
}

impl Error {
    /// True when the same call may well work in a moment.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Deadline)
    }

    /// The name of the constraint that was violated, if one was: names become 4xx answers.
    pub fn constraint(&self) -> Option<&str> {
        let Self::Query(sqlx::Error::Database(error)) = self else { return None };
        match error.kind() {
            ErrorKind::UniqueViolation | ErrorKind::ForeignKeyViolation | ErrorKind::CheckViolation => {
                error.constraint()
            }
            _ => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // Protocol: a connection that broke in the middle of a message.
            sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error),
            // https://www.postgresql.org/docs/current/errcodes-appendix.html: connection exceptions (08), too many
            // connections and out of memory (53), shutdown and crash (57P), statement and lock timeouts.
            sqlx::Error::Database(e) => match e.code().as_deref() {
                Some("57014" | "55P03") => Self::Deadline,
                Some(code) if code.starts_with("08") || code.starts_with("53") || code.starts_with("57P") => {
                    Self::Unavailable(error)
                }
                _ => Self::Query(error),
            },
            _ => Self::Query(error),
        }
    }
}
