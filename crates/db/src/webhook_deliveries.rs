//! What is sent to users' endpoints, and what came of it.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Sealed};

/// Makes a delivery of this event for each endpoint of the user that wants its type; returns their ids.
pub async fn insert(c: &mut PgConnection, user_id: Uuid, event_type: &str, body: &str) -> Result<Vec<Uuid>> {
    let ids = sqlx::query_scalar!(
        "insert into webhook_delivery (id, endpoint_id, event_type, body)
         select gen_random_uuid(), id, $2, $3 from webhook_endpoint
         where user_id = $1 and disabled_at is null and (event_types = '{}' or $2 = any(event_types))
         returning id",
        user_id,
        event_type,
        body
    )
    .fetch_all(c)
    .await?;
    Ok(ids)
}

/// Makes a delivery for this one endpoint of the user, whatever types it wants; `None` when there is no such endpoint.
pub async fn insert_for(
    c: &mut PgConnection,
    user_id: Uuid,
    endpoint_id: Uuid,
    event_type: &str,
    body: &str,
) -> Result<Option<Uuid>> {
    let id = sqlx::query_scalar!(
        "insert into webhook_delivery (id, endpoint_id, event_type, body)
         select gen_random_uuid(), id, $3, $4 from webhook_endpoint where id = $2 and user_id = $1
         returning id",
        user_id,
        endpoint_id,
        event_type,
        body
    )
    .fetch_optional(c)
    .await?;
    Ok(id)
}

/// A delivery that is to be made, with everything that it takes.
#[derive(Debug, Clone)]
pub struct Pending {
    /// To which endpoint.
    pub endpoint_id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// Where to.
    pub url: String,
    /// The encrypted secret.
    pub sealed: Sealed,
    /// What to send.
    pub body: String,
    /// Nothing is to be sent there any more.
    pub disabled: bool,
}

/// A delivery that is neither made nor given up.
pub async fn find_pending(c: &mut PgConnection, id: Uuid) -> Result<Option<Pending>> {
    let row = sqlx::query!(
        r#"select e.id as endpoint_id, e.user_id, e.url, e.key_id, e.sealed, d.body,
                  e.disabled_at is not null as "disabled!"
           from webhook_delivery d join webhook_endpoint e on e.id = d.endpoint_id
           where d.id = $1 and d.delivered_at is null and d.failed_at is null"#,
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(row.map(|r| Pending {
        endpoint_id: r.endpoint_id,
        user_id: r.user_id,
        url: r.url,
        sealed: Sealed { key_id: r.key_id, bytes: r.sealed },
        body: r.body,
        disabled: r.disabled,
    }))
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It arrived.
    Delivered,
    /// It will be tried again.
    Again,
    /// It is given up.
    Failed,
}

/// Notes an attempt: the answer's status, or why there was none.
pub async fn record_attempt(
    c: &mut PgConnection,
    id: Uuid,
    status: Option<u16>,
    error: Option<&str>,
    verdict: Verdict,
) -> Result<()> {
    sqlx::query!(
        "update webhook_delivery
         set attempts = attempts + 1, last_attempt_at = now(), last_status = $2, last_error = $3,
             delivered_at = case when $4 then now() end, failed_at = case when $5 then now() end
         where id = $1",
        id,
        status.map(i32::from),
        error,
        verdict == Verdict::Delivered,
        verdict == Verdict::Failed,
    )
    .execute(c)
    .await?;
    Ok(())
}

/// A delivery, as the log of an endpoint shows it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Identifier.
    pub id: Uuid,
    /// Of which event.
    pub event_type: String,
    /// When the event happened.
    pub created_at: DateTime<Utc>,
    /// Attempts so far.
    pub attempts: i32,
    /// When the last one was made.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// What was answered to it.
    pub last_status: Option<i32>,
    /// Why there was no answer to it.
    pub last_error: Option<String>,
    /// When it arrived.
    pub delivered_at: Option<DateTime<Utc>>,
    /// When it was given up.
    pub failed_at: Option<DateTime<Utc>>,
}

/// The latest deliveries to an endpoint, newest first.
pub async fn latest(c: &mut PgConnection, endpoint_id: Uuid, limit: i64) -> Result<Vec<Delivery>> {
    let deliveries = sqlx::query_as!(
        Delivery,
        "select id, event_type, created_at, attempts, last_attempt_at, last_status, last_error, delivered_at, failed_at
         from webhook_delivery where endpoint_id = $1 order by created_at desc, id limit $2",
        endpoint_id,
        limit
    )
    .fetch_all(c)
    .await?;
    Ok(deliveries)
}

/// Deletes deliveries of events that happened before `before`. Returns how many.
pub async fn delete_old(c: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let done = sqlx::query!("delete from webhook_delivery where created_at < $1", before).execute(c).await?;
    Ok(done.rows_affected())
}
