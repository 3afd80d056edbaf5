//! Keys for machines.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// A key, without its secret.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Identifier.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// What its owner calls it.
    pub name: String,
    /// The part that may be shown.
    pub public_id: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, roughly.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey<'a> {
    /// Identifier.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// What its owner calls it.
    pub name: &'a str,
    /// The part that may be shown.
    pub public_id: &'a str,
    /// SHA-256 of the secret part.
    pub secret_hash: &'a [u8],
    /// What it may do.
    pub scopes: &'a [String],
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What a request with a key is checked against.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    /// Identifier.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// The user's role.
    pub role: String,
    /// SHA-256 of the secret part.
    pub secret_hash: Vec<u8>,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Overrides of the rate limits.
    pub policy: serde_json::Value,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// True when the key is revoked or its user disabled.
    pub dead: bool,
}

/// Makes a key; `None` when the user has `most` that are not revoked.
pub async fn insert(c: &mut PgConnection, new: &NewApiKey<'_>, most: i64) -> Result<Option<ApiKey>> {
    // Counted under a lock on the user: two at once must not both be the last one.
    crate::users::lock(c, new.user_id).await?;
    let key = sqlx::query_as!(
        ApiKey,
        "insert into api_key (id, user_id, name, public_id, secret_hash, scopes, expires_at)
         select $1, $2, $3, $4, $5, $6, $7
         where (select count(*) from api_key where user_id = $2 and revoked_at is null) < $8
         returning id, user_id, name, public_id, scopes, created_at, expires_at, last_used_at, revoked_at",
        new.id,
        new.user_id,
        new.name,
        new.public_id,
        new.secret_hash,
        new.scopes,
        new.expires_at,
        most,
    )
    .fetch_optional(c)
    .await?;
    Ok(key)
}

/// A user's newest keys, newest first.
pub async fn list(c: &mut PgConnection, user_id: Uuid, limit: i64) -> Result<Vec<ApiKey>> {
    let keys = sqlx::query_as!(
        ApiKey,
        "select id, user_id, name, public_id, scopes, created_at, expires_at, last_used_at, revoked_at
         from api_key where user_id = $1 order by id desc limit $2",
        user_id,
        limit,
    )
    .fetch_all(c)
    .await?;
    Ok(keys)
}

/// What a request with this key is checked against.
pub async fn record(c: &mut PgConnection, public_id: &str) -> Result<Option<KeyRecord>> {
    let record = sqlx::query_as!(
        KeyRecord,
        r#"select k.id, k.user_id, u.role, k.secret_hash, k.scopes, k.policy, k.expires_at,
                  (k.revoked_at is not null or u.disabled_at is not null) as "dead!"
           from api_key k join users u on u.id = k.user_id where k.public_id = $1"#,
        public_id
    )
    .fetch_optional(c)
    .await?;
    Ok(record)
}

/// The limits of its own that a key has, by policy; `None` when there is no such key, or it is revoked.
pub async fn limits(c: &mut PgConnection, id: Uuid) -> Result<Option<serde_json::Value>> {
    let limits = sqlx::query_scalar!("select policy from api_key where id = $1 and revoked_at is null", id)
        .fetch_optional(c)
        .await?;
    Ok(limits)
}

/// Replaces the limits of a key, and returns its public id; `None` when there is no such key, or it is dead. The key and its
/// user stay as they are until the transaction ends: neither can be disabled meanwhile.
pub async fn set_limits(
    c: &mut PgConnection,
    id: Uuid,
    limits: &serde_json::Value,
) -> Result<Option<String>> {
    let public_id = sqlx::query_scalar!(
        "with owner as (
             select u.id from users u join api_key k on k.user_id = u.id
             where k.id = $1 and u.disabled_at is null for share of u
         )
         update api_key k set policy = $2 from owner
         where k.id = $1 and k.user_id = owner.id and k.revoked_at is null
         returning k.public_id",
        id,
        limits
    )
    .fetch_optional(c)
    .await?;
    Ok(public_id)
}

/// Revokes a key of this user and returns its public id; `None` when there is no such key.
pub async fn revoke(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<Option<String>> {
    let public_id = sqlx::query_scalar!(
        "update api_key set revoked_at = coalesce(revoked_at, now()) where id = $1 and user_id = $2 returning public_id",
        id,
        user_id
    )
    .fetch_optional(c)
    .await?;
    Ok(public_id)
}

/// Revokes every key of a user and returns their public ids.
pub async fn revoke_all(c: &mut PgConnection, user_id: Uuid) -> Result<Vec<String>> {
    let public_ids = sqlx::query_scalar!(
        "update api_key set revoked_at = now() where user_id = $1 and revoked_at is null returning public_id",
        user_id
    )
    .fetch_all(c)
    .await?;
    Ok(public_ids)
}

/// The public ids of keys that were revoked in this last while, in any order.
pub async fn revoked_within(c: &mut PgConnection, last: Duration) -> Result<Vec<String>> {
    let ids = sqlx::query_scalar!(
        "select public_id from api_key where revoked_at > now() - make_interval(secs => $1)",
        last.as_secs_f64()
    )
    .fetch_all(c)
    .await?;
    Ok(ids)
}

/// Is this key still good?
pub async fn is_active(c: &mut PgConnection, id: Uuid) -> Result<bool> {
    let active = sqlx::query_scalar!(
        r#"select exists (select from api_key k join users u on u.id = k.user_id
            where k.id = $1 and k.revoked_at is null and coalesce(k.expires_at > now(), true)
              and u.disabled_at is null) as "active!""#,
        id
    )
    .fetch_one(c)
    .await?;
    Ok(active)
}

/// Notes that a key is used, at most once a minute.
pub async fn touch(c: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!(
        "update api_key set last_used_at = now()
         where id = $1 and (last_used_at is null or last_used_at < now() - interval '1 minute')",
        id
    )
    .execute(c)
    .await?;
    Ok(())
}
