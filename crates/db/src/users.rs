//! The `users` table.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// A user, without the password hash.
#[derive(Debug, Clone)]
pub struct User {
    /// Identifier (UUID version 7).
    pub id: Uuid,
    /// Normalised address.
    pub email: String,
    /// `user` or `admin`.
    pub role: String,
    /// When the address was confirmed.
    pub email_verified_at: Option<DateTime<Utc>>,
    /// When the account was disabled.
    pub disabled_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// What a login compares with.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Whose.
    pub user_id: Uuid,
    /// PHC string of argon2id.
    pub password_hash: String,
    /// `user` or `admin`.
    pub role: String,
    /// A disabled account cannot log in.
    pub disabled: bool,
}

/// Makes a user; the constraint `users_email_key` says that the address is taken.
pub async fn insert(
    c: &mut PgConnection,
    id: Uuid,
    email: &str,
    password_hash: &str,
    role: &str,
) -> Result<User> {
    let user = sqlx::query_as!(
        User,
        "insert into users (id, email, password_hash, role) values ($1, $2, $3, $4)
         returning id, email, role, email_verified_at, disabled_at, created_at",
        id,
        email,
        password_hash,
        role,
    )
    .fetch_one(c)
    .await?;
    Ok(user)
}

/// One user.
pub async fn find(c: &mut PgConnection, id: Uuid) -> Result<Option<User>> {
    let user = sqlx::query_as!(
        User,
        "select id, email, role, email_verified_at, disabled_at, created_at from users where id = $1",
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(user)
}

/// One user by address.
pub async fn find_by_email(c: &mut PgConnection, email: &str) -> Result<Option<User>> {
    let user = sqlx::query_as!(
        User,
        "select id, email, role, email_verified_at, disabled_at, created_at from users where email = $1",
        email
    )
    .fetch_optional(c)
    .await?;
    Ok(user)
}

/// What a login with this address compares with.
pub async fn credentials(c: &mut PgConnection, email: &str) -> Result<Option<Credentials>> {
    let found = sqlx::query_as!(
        Credentials,
        r#"select id as user_id, password_hash, role, disabled_at is not null as "disabled!" from users where email = $1"#,
        email
    )
    .fetch_optional(c)
    .await?;
    Ok(found)
}

/// Holds what a login compared with until the transaction ends; false when it does not hold any more: the password was
/// changed, or the account disabled. Whoever does that ends the sessions that are there, and must not miss one that a login
/// with the old password is just about to make.
pub async fn hold_credentials(c: &mut PgConnection, id: Uuid, password_hash: &str) -> Result<bool> {
    let held = sqlx::query_scalar!(
        "select id from users where id = $1 and password_hash = $2 and disabled_at is null for share",
        id,
        password_hash
    )
    .fetch_optional(c)
    .await?;
    Ok(held.is_some())
}

/// Locks a user's row until the transaction ends. Whatever changes a password, uses a one-time token or ends many sessions
/// does this first: then two of them happen one after the other, and cannot deadlock. Rows that refer to the user can be
/// inserted meanwhile.
pub async fn lock(c: &mut PgConnection, id: Uuid) -> Result<Option<User>> {
    let user = sqlx::query_as!(
        User,
        "select id, email, role, email_verified_at, disabled_at, created_at from users where id = $1
         for no key update",
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(user)
}

/// The password hash of a user.
pub async fn password_hash(c: &mut PgConnection, id: Uuid) -> Result<Option<String>> {
    let hash =
        sqlx::query_scalar!("select password_hash from users where id = $1", id).fetch_optional(c).await?;
    Ok(hash)
}

/// Replaces the password hash.
pub async fn set_password_hash(c: &mut PgConnection, id: Uuid, password_hash: &str) -> Result<()> {
    sqlx::query!("update users set password_hash = $2, updated_at = now() where id = $1", id, password_hash)
        .execute(c)
        .await?;
    Ok(())
}

/// Users, newest first, older than the one with the id `before`.
pub async fn list(c: &mut PgConnection, before: Option<Uuid>, limit: i64) -> Result<Vec<User>> {
    let users = sqlx::query_as!(
        User,
        "select id, email, role, email_verified_at, disabled_at, created_at from users
         where $1::uuid is null or id < $1 order by id desc limit $2",
        before,
        limit
    )
    .fetch_all(c)
    .await?;
    Ok(users)
}

/// Changes a role; false when it is that already.
pub async fn set_role(c: &mut PgConnection, id: Uuid, role: &str) -> Result<bool> {
    let done =
        sqlx::query!("update users set role = $2, updated_at = now() where id = $1 and role <> $2", id, role)
            .execute(c)
            .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets a disabled user log in again; false when the user was not disabled.
pub async fn enable(c: &mut PgConnection, id: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "update users set disabled_at = null, updated_at = now() where id = $1 and disabled_at is not null",
        id
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Replaces the password hash, if it is still `old`.
pub async fn replace_password_hash(c: &mut PgConnection, id: Uuid, old: &str, new: &str) -> Result<bool> {
    let done = sqlx::query!(
        "update users set password_hash = $3, updated_at = now() where id = $1 and password_hash = $2",
        id,
        old,
        new,
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What a disabled user had, to be marked in Redis.
#[derive(Debug, Clone, Default)]
pub struct Disabled {
    /// False when the user was disabled already.
    pub now: bool,
    /// Sessions that ended within the longest life of an access token.
    pub sessions: Vec<Uuid>,
    /// Public ids of API keys that were revoked lately.
    pub api_keys: Vec<String>,
}

/// Disables a user, ends every session and revokes every API key. Doing it again tells once more what has to be marked.
pub async fn disable(c: &mut PgConnection, id: Uuid) -> Result<Disabled> {
    // First the user's row: a login that is on its way holds it until its session is there, and then that is ended too.
    let now = sqlx::query!(
        "update users set disabled_at = now(), updated_at = now() where id = $1 and disabled_at is null",
        id
    )
    .execute(&mut *c)
    .await?;
    sqlx::query!(
        "update session set revoked_at = now(), revoked_reason = 'user disabled'
         where user_id = $1 and revoked_at is null",
        id
    )
    .execute(&mut *c)
    .await?;
    sqlx::query!("update api_key set revoked_at = now() where user_id = $1 and revoked_at is null", id)
        .execute(&mut *c)
        .await?;
    let sessions = sqlx::query_scalar!(
        "select id from session where user_id = $1 and revoked_at > now() - interval '2 hours'",
        id
    )
    .fetch_all(&mut *c)
    .await?;
    let api_keys = sqlx::query_scalar!(
        "select public_id from api_key where user_id = $1 and revoked_at > now() - interval '2 hours'",
        id
    )
    .fetch_all(c)
    .await?;
    Ok(Disabled { now: now.rows_affected() == 1, sessions, api_keys })
}

/// Ends what was made for an account before its address was confirmed, and returns the public ids of its API keys. Whoever
/// registers with somebody else's address must have nothing of it left when the owner takes the account over.
pub async fn end_what_is_unconfirmed(c: &mut PgConnection, id: Uuid) -> Result<Vec<String>> {
    let api_keys = crate::api_keys::revoke_all(c, id).await?;
    sqlx::query!("delete from credential where user_id = $1", id).execute(&mut *c).await?;
    sqlx::query!("delete from webhook_endpoint where user_id = $1", id).execute(c).await?;
    Ok(api_keys)
}

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Users who may log in.
    pub enabled: i64,
    /// Users who may not.
    pub disabled: i64,
    /// Sessions that were used in the last hour.
    pub active_sessions: i64,
    /// Users with such a session.
    pub active_users: i64,
}

/// Counts users and sessions, each up to a million: a metric must not become a long query. An hour is the longest life of an
/// access token, so whoever is there has refreshed within one.
pub async fn count(c: &mut PgConnection) -> Result<Counts> {
    let counts = sqlx::query_as!(
        Counts,
        r#"select (select count(*) from (select from users where disabled_at is null limit 1000000) u) as "enabled!",
                  (select count(*) from (select from users where disabled_at is not null limit 1000000) u) as "disabled!",
                  count(*) as "active_sessions!", count(distinct user_id) as "active_users!"
           from (select user_id from session where revoked_at is null and last_used_at > now() - interval '1 hour'
                 limit 1000000) s"#
    )
    .fetch_one(c)
    .await?;
    Ok(counts)
}

/// Notes that the address of a user is confirmed; false when it is another one by now.
pub async fn confirm_email(c: &mut PgConnection, id: Uuid, email: &str) -> Result<bool> {
    let done = sqlx::query!(
        "update users set email_verified_at = coalesce(email_verified_at, now()), updated_at = now()
         where id = $1 and email = $2",
        id,
        email,
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}
