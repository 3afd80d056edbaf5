//! Invitations to register.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// An invitation. Its token is a one-time token that a job makes and mails.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Identifier (UUID version 7).
    pub id: Uuid,
    /// Who may register with it: normalised.
    pub email: String,
    /// The role that the new account gets.
    pub role: String,
    /// Which administrator made it; none when that account is gone.
    pub invited_by: Option<Uuid>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
    /// When somebody registered with it.
    pub accepted_at: Option<DateTime<Utc>>,
    /// When it was taken back.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Makes an invitation and revokes the open one of this address, if there is one. The constraint `invitation_open` says that
/// somebody else made one at the same moment.
pub async fn insert(
    c: &mut PgConnection,
    id: Uuid,
    email: &str,
    role: &str,
    invited_by: Uuid,
    expires_at: DateTime<Utc>,
) -> Result<Invitation> {
    sqlx::query!(
        "update invitation set revoked_at = now() where email = $1 and accepted_at is null and revoked_at is null",
        email
    )
    .execute(&mut *c)
    .await?;
    let invitation = sqlx::query_as!(
        Invitation,
        "insert into invitation (id, email, role, invited_by, expires_at) values ($1, $2, $3, $4, $5)
         returning id, email, role, invited_by, created_at, expires_at, accepted_at, revoked_at",
        id,
        email,
        role,
        invited_by,
        expires_at,
    )
    .fetch_one(c)
    .await?;
    Ok(invitation)
}

/// The newest invitations, whatever became of them.
pub async fn list(c: &mut PgConnection, limit: i64) -> Result<Vec<Invitation>> {
    let invitations = sqlx::query_as!(
        Invitation,
        "select id, email, role, invited_by, created_at, expires_at, accepted_at, revoked_at
         from invitation order by id desc limit $1",
        limit
    )
    .fetch_all(c)
    .await?;
    Ok(invitations)
}

/// An invitation that may still be accepted. It holds as long as whoever made it may invite: one that gives the role of an
/// administrator would otherwise be a way back for a former one.
pub async fn find_open(c: &mut PgConnection, id: Uuid, now: DateTime<Utc>) -> Result<Option<Invitation>> {
    let invitation = sqlx::query_as!(
        Invitation,
        "select id, email, role, invited_by, created_at, expires_at, accepted_at, revoked_at
         from invitation where id = $1 and accepted_at is null and revoked_at is null and expires_at > $2
           and exists (select from users u where u.id = invited_by and u.role = 'admin' and u.disabled_at is null)",
        id,
        now,
    )
    .fetch_optional(c)
    .await?;
    Ok(invitation)
}

/// Accepts an invitation for this address and returns the role that it gives; see [`find_open`]. Of any number of callers one
/// gets it.
pub async fn accept(
    c: &mut PgConnection,
    id: Uuid,
    email: &str,
    now: DateTime<Utc>,
) -> Result<Option<String>> {
    let role = sqlx::query_scalar!(
        "update invitation set accepted_at = $3
         where id = $1 and email = $2 and accepted_at is null and revoked_at is null and expires_at > $3
           and exists (select from users u where u.id = invited_by and u.role = 'admin' and u.disabled_at is null)
         returning role",
        id,
        email,
        now,
    )
    .fetch_optional(c)
    .await?;
    Ok(role)
}

/// Takes an invitation back; false when it is unknown, was accepted, or was taken back before.
pub async fn revoke(c: &mut PgConnection, id: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "update invitation set revoked_at = now() where id = $1 and accepted_at is null and revoked_at is null",
        id
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}
