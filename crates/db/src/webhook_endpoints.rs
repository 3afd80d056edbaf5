//! Where users want to be told. The secrets that deliveries are signed with are sealed: see [`crate::seal`].

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, Sealed, SealingKeys, credentials::Resealed};

/// An endpoint, without its secret.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Identifier.
    pub id: Uuid,
    /// Where to.
    pub url: String,
    /// Which types of events; empty means all.
    pub event_types: Vec<String>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// When the other side said that it is gone.
    pub disabled_at: Option<DateTime<Utc>>,
}

/// An endpoint to be registered.
#[derive(Debug, Clone)]
pub struct NewEndpoint<'a> {
    /// Identifier.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// Where to.
    pub url: &'a str,
    /// Which types of events; empty means all.
    pub event_types: &'a [String],
    /// The encrypted secret.
    pub sealed: &'a Sealed,
}

/// Registers an endpoint; `None` when the user has `most` of them already.
pub async fn insert(c: &mut PgConnection, new: &NewEndpoint<'_>, most: i64) -> Result<Option<Endpoint>> {
    // Counted under a lock on the user: two at once must not both be the last one.
    sqlx::query!("select id from users where id = $1 for no key update", new.user_id)
        .fetch_optional(&mut *c)
        .await?;
    let endpoint = sqlx::query_as!(
        Endpoint,
        "insert into webhook_endpoint (id, user_id, url, event_types, key_id, sealed)
         select $1, $2, $3, $4, $5, $6 where (select count(*) from webhook_endpoint where user_id = $2) < $7
         returning id, url, event_types, created_at, disabled_at",
        new.id,
        new.user_id,
        new.url,
        new.event_types,
        new.sealed.key_id,
        new.sealed.bytes,
        most,
    )
    .fetch_optional(c)
    .await?;
    Ok(endpoint)
}

/// A user's endpoints, newest first.
pub async fn list(c: &mut PgConnection, user_id: Uuid) -> Result<Vec<Endpoint>> {
    let endpoints = sqlx::query_as!(
        Endpoint,
        "select id, url, event_types, created_at, disabled_at from webhook_endpoint
         where user_id = $1 order by id desc",
        user_id
    )
    .fetch_all(c)
    .await?;
    Ok(endpoints)
}

/// True when this user has this endpoint.
pub async fn exists(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<bool> {
    let exists = sqlx::query_scalar!(
        r#"select exists (select from webhook_endpoint where id = $1 and user_id = $2) as "exists!""#,
        id,
        user_id
    )
    .fetch_one(c)
    .await?;
    Ok(exists)
}

/// Forgets an endpoint of this user and all that was sent to it; false when there is none.
pub async fn delete(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<bool> {
    let done = sqlx::query!("delete from webhook_endpoint where id = $1 and user_id = $2", id, user_id)
        .execute(c)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Sends nothing there any more.
pub async fn disable(c: &mut PgConnection, id: Uuid) -> Result<()> {
    sqlx::query!("update webhook_endpoint set disabled_at = coalesce(disabled_at, now()) where id = $1", id)
        .execute(c)
        .await?;
    Ok(())
}

/// Encrypts up to `limit` secrets anew; see [`crate::credentials::reseal`].
pub async fn reseal(c: &mut PgConnection, keys: &SealingKeys, after: Uuid, limit: i64) -> Result<Resealed> {
    let known = keys.ids();
    let rows = sqlx::query!(
        "select id, user_id, key_id, sealed from webhook_endpoint
         where key_id = any($1) and key_id <> $2 and id > $3 order by id limit $4 for no key update",
        &known,
        keys.current(),
        after,
        limit,
    )
    .fetch_all(&mut *c)
    .await?;
    let mut part = Resealed { last: rows.last().map(|r| r.id), ..Resealed::default() };
    for row in rows {
        match keys.renew(row.id, row.user_id, &Sealed { key_id: row.key_id, bytes: row.sealed }) {
            Ok(sealed) => {
                sqlx::query!(
                    "update webhook_endpoint set key_id = $2, sealed = $3 where id = $1",
                    row.id,
                    sealed.key_id,
                    sealed.bytes
                )
                .execute(&mut *c)
                .await?;
                part.done += 1;
            }
            Err(error) => part.failed.push((row.id, error)),
        }
    }
    Ok(part)
}
