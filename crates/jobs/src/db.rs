//! Calls on the pool with a deadline of our own.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};

use crate::Error;

/// The queue's statements take milliseconds; after this long the server is gone or stuck.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Runs `work` on a pooled connection. After the deadline the connection is closed and not returned: a server that
/// vanished without a word would otherwise hold the pool's slot for ever.
pub(crate) async fn call<T, E: Into<Error>>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, Error> {
    let mut conn = pool.acquire().await?;
    let Ok(done) = tokio::time::timeout(DEADLINE, work(&mut conn)).await else {
        drop(conn.detach());
        return Err(Error::Deadline(DEADLINE));
    };
    done.map_err(Into::into)
}
