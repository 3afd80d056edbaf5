//! The log of security events.

use std::net::IpAddr;

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
