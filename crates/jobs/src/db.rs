//! Calls on the pool, from which no connection comes back in the middle of one.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgPool, Postgres, pool::PoolConnection};

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

/// Runs `work` in a transaction: committed when it returns `Ok`, rolled back otherwise. Whoever calls it sets the deadline.
pub(crate) async fn transaction<T, E: From<sqlx::Error>>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    let mut busy = Busy(Some(pool.acquire().await?));
    let mut tx = busy.conn().begin().await?;
    let result = work(&mut tx).await;
    if result.is_ok() {
        tx.commit().await?;
    } else if tx.rollback().await.is_err() {
        // The connection is closed then; what the work says counts.
        return result;
    }
    busy.finished();
    result
}

/// A connection that is closed and not returned when its call does not finish, because its time is up or its caller was
/// dropped: it may be in a transaction that sqlx does not know of
/// ([sqlx #4385](https://github.com/launchbadge/sqlx/issues/4385)), and the next one's writes would be lost in it.
struct Busy(Option<PoolConnection<Postgres>>);

impl Busy {
    fn conn(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("taken at the end only")
    }

    fn finished(mut self) -> PoolConnection<Postgres> {
        self.0.take().expect("taken at the end only")
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            drop(conn.detach());
        }
    }
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
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.pool.acquire().await?,
        };
        let mut busy = Busy(Some(conn));
        let result = tokio::time::timeout(DEADLINE, work(busy.conn())).await;
        let result = result.map_err(|_| Error::Deadline(DEADLINE))?;
        let conn = busy.finished();
        if result.is_ok() {
            self.conn = Some(conn);
        }
        result.map_err(Into::into)
    }

    /// There is nothing more to do for now: others may have it.
    pub(crate) fn give_back(&mut self) {
        self.conn = None;
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, pin::pin};

    use sqlx::postgres::PgPoolOptions;
    use test_support::TestDatabase;

    use super::*;

    #[tokio::test]
    async fn a_transaction_dropped_while_it_begins_takes_no_later_write_with_it() {
        let database = TestDatabase::create().await;
        let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
        let pool = pool.connect(database.url()).await.unwrap();
        sqlx::raw_sql("create table written (n int)").execute(&pool).await.unwrap();
        for n in 0..20 {
            // An idle connection, so that one of the first few polls sends BEGIN.
            drop(pool.acquire().await.unwrap());
            while pool.num_idle() == 0 {
                tokio::task::yield_now().await;
            }
            {
                let mut ours = pin!(transaction::<(), Error>(&pool, async |_| pending().await));
                let mut queues = pin!(call(&pool, async |conn: &mut PgConnection| {
                    let _tx = conn.begin().await?;
                    pending::<Result<(), Error>>().await
                }));
                for _ in 0..=n / 2 {
                    let polled = match n % 2 {
                        0 => futures_util::poll!(&mut ours),
                        _ => futures_util::poll!(&mut queues),
                    };
                    assert!(polled.is_pending());
                    tokio::task::yield_now().await;
                }
            }
            sqlx::query("insert into written values ($1)").bind(n).execute(&pool).await.unwrap();
        }
        pool.close().await;
        let mut other = PgConnection::connect(database.url()).await.unwrap();
        let written: i64 =
            sqlx::query_scalar("select count(*) from written").fetch_one(&mut other).await.unwrap();
        assert_eq!(written, 20);
    }
}
