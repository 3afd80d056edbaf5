//! Sessions and their families of refresh tokens.

use std::{net::IpAddr, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// A session to be made.
#[derive(Debug, Clone)]
pub struct NewSession<'a> {
    /// Identifier, the `sid` of access tokens.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// Now.
    pub created_at: DateTime<Utc>,
    /// Used or not, it ends here.
    pub expires_at: DateTime<Utc>,
    /// What the client calls itself.
    pub user_agent: Option<&'a str>,
    /// Where it came from.
    pub ip: IpAddr,
}

/// Makes a session.
pub async fn insert(c: &mut PgConnection, new: &NewSession<'_>) -> Result<()> {
    sqlx::query!(
        "insert into session (id, user_id, created_at, last_used_at, expires_at, user_agent, ip)
         values ($1, $2, $3, $3, $4, $5, ($6::text)::inet)",
        new.id,
        new.user_id,
        new.created_at,
        new.expires_at,
        new.user_agent,
        new.ip.to_string(),
    )
    .execute(c)
    .await?;
    Ok(())
}

/// Adds a refresh token to a session. Giving the same child again is not an error.
pub async fn insert_refresh_token(
    c: &mut PgConnection,
    hash: &[u8],
    session_id: Uuid,
    parent_hash: Option<&[u8]>,
    expires_at: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "insert into refresh_token (hash, session_id, parent_hash, expires_at) values ($1, $2, $3, $4)
         on conflict (hash) do nothing",
        hash,
        session_id,
        parent_hash,
        expires_at,
    )
    .execute(c)
    .await?;
    Ok(())
}

/// A refresh token together with its session and user.
#[derive(Debug, Clone)]
pub struct RefreshToken {
    /// Its session.
    pub session_id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// `user` or `admin`.
    pub role: String,
    /// When the token ends.
    pub expires_at: DateTime<Utc>,
    /// When it was exchanged.
    pub used_at: Option<DateTime<Utc>>,
    /// When the session ends.
    pub session_expires_at: DateTime<Utc>,
    /// True when the session was revoked or the user disabled.
    pub dead: bool,
    /// True when its child was exchanged too.
    pub child_used: bool,
}

/// Finds a refresh token and locks its session: refresh, reuse and logout of one session happen one after the other.
pub async fn lock_by_refresh_token(c: &mut PgConnection, hash: &[u8]) -> Result<Option<RefreshToken>> {
    // The lock first, in a statement of its own: what is read after it is what the previous holder committed.
    sqlx::query!(
        "select s.id from session s join refresh_token t on t.session_id = s.id where t.hash = $1 for update of s",
        hash
    )
    .fetch_optional(&mut *c)
    .await?;
    let token = sqlx::query_as!(
        RefreshToken,
        r#"select t.session_id, s.user_id, u.role, t.expires_at, t.used_at, s.expires_at as session_expires_at,
                  (s.revoked_at is not null or u.disabled_at is not null) as "dead!",
                  exists (select from refresh_token child where child.session_id = t.session_id
                          and child.parent_hash = t.hash and child.used_at is not null) as "child_used!"
           from refresh_token t join session s on s.id = t.session_id join users u on u.id = s.user_id
           where t.hash = $1"#,
        hash
    )
    .fetch_optional(c)
    .await?;
    Ok(token)
}

/// Marks a refresh token as exchanged and its session as used.
pub async fn use_refresh_token(
    c: &mut PgConnection,
    hash: &[u8],
    session_id: Uuid,
    now: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!("update refresh_token set used_at = $2 where hash = $1 and used_at is null", hash, now)
        .execute(&mut *c)
        .await?;
    sqlx::query!("update session set last_used_at = $2 where id = $1", session_id, now).execute(c).await?;
    Ok(())
}

/// Revokes a session and with it its family of tokens; false when it was revoked already or is not there.
pub async fn revoke(c: &mut PgConnection, id: Uuid, reason: &str) -> Result<bool> {
    let done = sqlx::query!(
        "update session set revoked_at = now(), revoked_reason = $2 where id = $1 and revoked_at is null",
        id,
        reason
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The sessions that were revoked in this last while, in any order.
pub async fn revoked_within(c: &mut PgConnection, last: Duration) -> Result<Vec<Uuid>> {
    let ids = sqlx::query_scalar!(
        "select id from session where revoked_at > now() - make_interval(secs => $1)",
        last.as_secs_f64()
    )
    .fetch_all(c)
    .await?;
    Ok(ids)
}

/// A session that can still be used.
#[derive(Debug, Clone)]
pub struct Session {
    /// Identifier.
    pub id: Uuid,
    /// What the client called itself at login.
    pub user_agent: Option<String>,
    /// Where the login came from.
    pub ip: Option<String>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When its refresh token was last exchanged.
    pub last_used_at: DateTime<Utc>,
    /// Used or not, it ends here.
    pub expires_at: DateTime<Utc>,
}

/// A user's sessions that can still be used, the most recently used first.
pub async fn list(
    c: &mut PgConnection,
    user_id: Uuid,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Session>> {
    let sessions = sqlx::query_as!(
        Session,
        "select s.id, s.user_agent, host(s.ip) as ip, s.created_at, s.last_used_at, s.expires_at
         from session s
         where s.user_id = $1 and s.revoked_at is null and s.expires_at > $2
           and exists (select from refresh_token t
                       where t.session_id = s.id and t.used_at is null and t.expires_at > $2)
         order by s.last_used_at desc, s.id desc limit $3",
        user_id,
        now,
        limit,
    )
    .fetch_all(c)
    .await?;
    Ok(sessions)
}

/// Revokes a session of this user; false when there is none, or it was revoked already.
pub async fn revoke_own(c: &mut PgConnection, user_id: Uuid, id: Uuid, reason: &str) -> Result<bool> {
    let done = sqlx::query!(
        "update session set revoked_at = now(), revoked_reason = $3
         where id = $1 and user_id = $2 and revoked_at is null",
        id,
        user_id,
        reason,
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A session that [`revoke_all`] ended.
#[derive(Debug, Clone)]
pub struct Revoked {
    /// Identifier.
    pub id: Uuid,
    /// When its last access token was issued.
    pub last_used_at: DateTime<Utc>,
}

/// Revokes every session of a user but one, and returns them. Lock the user's row before ([`crate::users::lock`]): two that
/// revoke many sessions would otherwise wait for each other's rows.
pub async fn revoke_all(
    c: &mut PgConnection,
    user_id: Uuid,
    except: Option<Uuid>,
    reason: &str,
) -> Result<Vec<Revoked>> {
    let revoked = sqlx::query_as!(
        Revoked,
        "update session set revoked_at = now(), revoked_reason = $3
         where user_id = $1 and revoked_at is null and id is distinct from $2
         returning id, last_used_at",
        user_id,
        except,
        reason,
    )
    .fetch_all(c)
    .await?;
    Ok(revoked)
}

/// Is this session still good? For routes that must know while Redis is out.
pub async fn is_active(c: &mut PgConnection, id: Uuid) -> Result<bool> {
    let active = sqlx::query_scalar!(
        r#"select exists (select from session s join users u on u.id = s.user_id
            where s.id = $1 and s.revoked_at is null and s.expires_at > now() and u.disabled_at is null) as "active!""#,
        id
    )
    .fetch_one(c)
    .await?;
    Ok(active)
}

/// Deletes sessions that ended before `before`; their tokens go with them. Returns how many.
pub async fn delete_ended(c: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let done = sqlx::query!("delete from session where expires_at < $1 or revoked_at < $1", before)
        .execute(c)
        .await?;
    Ok(done.rows_affected())
}

/// The role, as of now, of the user whose session this is; `None` when the session is over.
pub async fn active_role(c: &mut PgConnection, id: Uuid) -> Result<Option<String>> {
    let role = sqlx::query_scalar!(
        "select u.role from session s join users u on u.id = s.user_id
         where s.id = $1 and s.revoked_at is null and s.expires_at > now() and u.disabled_at is null",
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(role)
}
