//! Calls on the pool with a deadline of our own.

use std::time::Duration;

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};

use crate::Error;

/// The queue's statements take milliseconds; after this long the server is gone or stuck.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Runs `work` on a pooled connection. After the deadline the connection is closed and not returned: a server that
/// vanished without a word would otherwise hold the pool's slot for ever.
pub(crate) async fn call<T, E: Into<Error>>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, Error> {
    Kept::new(pool.clone()).call(work).await
}

/// A connection that is kept over calls that follow each other closely: to return one to the pool costs a round trip.
#[derive(Debug)]
pub(crate) struct Kept {
    pool: PgPool,
    conn: Option<PoolConnection<Postgres>>,
}

impl Kept {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, conn: None }
    }

    /// As [`call`]. A connection on which a call failed is given back, for the pool to test it.
    pub(crate) async fn call<T, E: Into<Error>>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, Error> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.pool.acquire().await?,
        };
        match tokio::time::timeout(DEADLINE, work(&mut conn)).await {
            Ok(Ok(done)) => {
                self.conn = Some(conn);
                Ok(done)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                drop(conn.detach());
                Err(Error::Deadline(DEADLINE))
            }
        }
    }

    /// There is nothing more to do for now: others may have it.
    pub(crate) fn give_back(&mut self) {
        self.conn = None;
    }
}
