//! Webhooks that came in, each event once.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::Result;

/// Keeps an event; false when it is there already, whatever its body.
pub async fn insert(c: &mut PgConnection, source: &str, event_id: &str, body: &[u8]) -> Result<bool> {
    let done = sqlx::query!(
        "insert into webhook_event (source, event_id, body) values ($1, $2, $3) on conflict do nothing",
        source,
        event_id,
        body
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The body of an event that is not processed yet; locks it until the transaction ends.
pub async fn lock_unprocessed(c: &mut PgConnection, source: &str, event_id: &str) -> Result<Option<Vec<u8>>> {
    let body = sqlx::query_scalar!(
        "select body from webhook_event where source = $1 and event_id = $2 and processed_at is null for update",
        source,
        event_id
    )
    .fetch_optional(c)
    .await?;
    Ok(body)
}

/// Notes that an event was acted upon.
pub async fn mark_processed(c: &mut PgConnection, source: &str, event_id: &str) -> Result<()> {
    sqlx::query!(
        "update webhook_event set processed_at = now() where source = $1 and event_id = $2",
        source,
        event_id
    )
    .execute(c)
    .await?;
    Ok(())
}

/// Deletes events that came before `before` and were acted upon. Returns how many.
pub async fn delete_processed(c: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let done =
        sqlx::query!("delete from webhook_event where received_at < $1 and processed_at is not null", before)
            .execute(c)
            .await?;
    Ok(done.rows_affected())
}
