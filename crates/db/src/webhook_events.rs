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

/// Notes that an event was acted upon, and its type if it has one.
pub async fn mark_processed(
    c: &mut PgConnection,
    source: &str,
    event_id: &str,
    event_type: Option<&str>,
) -> Result<()> {
    sqlx::query!(
        "update webhook_event set processed_at = now(), event_type = coalesce($3, event_type)
         where source = $1 and event_id = $2",
        source,
        event_id,
        event_type
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

/// Events behind this one (by source and id) whose type is not known, with what came in.
pub async fn without_type(c: &mut PgConnection, after: (&str, &str), limit: i64) -> Result<Vec<Untyped>> {
    let rows = sqlx::query_as!(
        Untyped,
        "select source, event_id, body from webhook_event
         where (source, event_id) > ($1, $2) and event_type is null
         order by source, event_id limit $3",
        after.0,
        after.1,
        limit
    )
    .fetch_all(c)
    .await?;
    Ok(rows)
}

/// An event whose type is not known.
#[derive(Debug)]
pub struct Untyped {
    /// Who sent it.
    pub source: String,
    /// The sender's id.
    pub event_id: String,
    /// As it was signed.
    pub body: Vec<u8>,
}

/// Notes the types of events, where they are not known yet.
pub async fn set_types(
    c: &mut PgConnection,
    sources: &[String],
    event_ids: &[String],
    types: &[String],
) -> Result<u64> {
    let done = sqlx::query!(
        "update webhook_event e set event_type = new.event_type
         from unnest($1::text[], $2::text[], $3::text[]) as new (source, event_id, event_type)
         where e.source = new.source and e.event_id = new.event_id and e.event_type is null",
        sources,
        event_ids,
        types
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected())
}
