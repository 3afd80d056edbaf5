//! The log of security events.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// Something that happened to an account.
#[derive(Debug, Clone, Default)]
pub struct Event<'a> {
    /// What, such as `login` or `refresh_reuse`.
    pub event: &'a str,
    /// To whom.
    pub user_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// From where.
    pub ip: Option<IpAddr>,
    /// In which request.
    pub request_id: Option<&'a str>,
    /// What else is worth knowing; never a secret.
    pub detail: serde_json::Value,
}

/// Appends an event.
pub async fn insert(c: &mut PgConnection, event: &Event<'_>) -> Result<()> {
    let detail = if event.detail.is_null() { serde_json::json!({}) } else { event.detail.clone() };
    sqlx::query!(
        "insert into audit_log (event, user_id, session_id, ip, request_id, detail)
         values ($1, $2, $3, ($4::text)::inet, $5, $6)",
        event.event,
        event.user_id,
        event.session_id,
        event.ip.map(|ip| ip.to_string()),
        event.request_id,
        detail,
    )
    .execute(c)
    .await?;
    Ok(())
}

/// An event that happened.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its number: later events have larger ones.
    pub id: i64,
    /// When.
    pub occurred_at: DateTime<Utc>,
    /// What.
    pub event: String,
    /// To whom.
    pub user_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// From where.
    pub ip: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// What else is worth knowing.
    pub detail: serde_json::Value,
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Of this user.
    pub user_id: Option<Uuid>,
    /// Of this kind.
    pub event: Option<&'a str>,
    /// Not before this.
    pub since: Option<DateTime<Utc>>,
    /// Before the event with this number.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: i64,
}

/// Events, newest first.
pub async fn list(c: &mut PgConnection, filter: &Filter<'_>) -> Result<Vec<Entry>> {
    let entries = sqlx::query_as!(
        Entry,
        "select id, occurred_at, event, user_id, session_id, host(ip) as ip, request_id, detail from audit_log
         where ($1::uuid is null or user_id = $1) and ($2::text is null or event = $2)
           and ($3::timestamptz is null or occurred_at >= $3) and ($4::bigint is null or id < $4)
         order by id desc limit $5",
        filter.user_id,
        filter.event,
        filter.since,
        filter.before,
        filter.limit,
    )
    .fetch_all(c)
    .await?;
    Ok(entries)
}

/// Deletes up to `limit` events that happened before `before`. Returns how many.
pub async fn delete_old(c: &mut PgConnection, before: DateTime<Utc>, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "delete from audit_log
         where id = any (array(select id from audit_log where occurred_at < $1 order by occurred_at limit $2))",
        before,
        limit
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected())
}
