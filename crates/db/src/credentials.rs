//! Credentials of other systems that users store. Secrets are sealed: see [`crate::seal`].

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Result, SealError, Sealed, SealingKeys};

/// A stored credential, without its secret.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Identifier.
    pub id: Uuid,
    /// What its owner calls it.
    pub name: String,
    /// Of which system.
    pub provider: String,
    /// The last characters of a long secret.
    pub ends_with: Option<String>,
    /// `unchecked`, `ok` or `failed`.
    pub status: String,
    /// Why it failed.
    pub status_detail: Option<String>,
    /// When it was tried.
    pub checked_at: Option<DateTime<Utc>>,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// A credential to be stored.
#[derive(Debug, Clone)]
pub struct NewCredential<'a> {
    /// Identifier.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// What its owner calls it.
    pub name: &'a str,
    /// Of which system.
    pub provider: &'a str,
    /// The encrypted secret.
    pub sealed: &'a Sealed,
    /// The last characters, if it is long enough to show them.
    pub ends_with: Option<&'a str>,
}

/// A credential with its encrypted secret.
#[derive(Debug, Clone)]
pub struct SealedCredential {
    /// Identifier.
    pub id: Uuid,
    /// Of which system.
    pub provider: String,
    /// The encrypted secret.
    pub sealed: Sealed,
}

/// Stores a credential; `None` when the user has `most` of them already. The constraint `credential_user_id_name_key` says
/// that the name is taken.
pub async fn insert(c: &mut PgConnection, new: &NewCredential<'_>, most: i64) -> Result<Option<Credential>> {
    // Counted under a lock on the user: two at once must not both be the last one.
    sqlx::query!("select id from users where id = $1 for no key update", new.user_id)
        .fetch_optional(&mut *c)
        .await?;
    let credential = sqlx::query_as!(
        Credential,
        "insert into credential (id, user_id, name, provider, key_id, sealed, ends_with)
         select $1, $2, $3, $4, $5, $6, $7 where (select count(*) from credential where user_id = $2) < $8
         returning id, name, provider, ends_with, status, status_detail, checked_at, created_at",
        new.id,
        new.user_id,
        new.name,
        new.provider,
        new.sealed.key_id,
        new.sealed.bytes,
        new.ends_with,
        most,
    )
    .fetch_optional(c)
    .await?;
    Ok(credential)
}

/// A user's credentials, newest first.
pub async fn list(c: &mut PgConnection, user_id: Uuid) -> Result<Vec<Credential>> {
    let credentials = sqlx::query_as!(
        Credential,
        "select id, name, provider, ends_with, status, status_detail, checked_at, created_at
         from credential where user_id = $1 order by id desc",
        user_id
    )
    .fetch_all(c)
    .await?;
    Ok(credentials)
}

/// Forgets a credential of this user; false when there is none.
pub async fn delete(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<bool> {
    let done =
        sqlx::query!("delete from credential where id = $1 and user_id = $2", id, user_id).execute(c).await?;
    Ok(done.rows_affected() == 1)
}

/// A credential of this user with its encrypted secret.
pub async fn find_sealed(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<Option<SealedCredential>> {
    let row = sqlx::query!(
        "select id, provider, key_id, sealed from credential where id = $1 and user_id = $2",
        id,
        user_id
    )
    .fetch_optional(c)
    .await?;
    Ok(row.map(|r| SealedCredential {
        id: r.id,
        provider: r.provider,
        sealed: Sealed { key_id: r.key_id, bytes: r.sealed },
    }))
}

/// Notes what came of trying a credential: `failed`, when there is something to say about it.
pub async fn record_check(c: &mut PgConnection, id: Uuid, failed: Option<&str>) -> Result<()> {
    sqlx::query!(
        "update credential set status = case when $2::text is null then 'ok' else 'failed' end,
                               status_detail = $2, checked_at = now()
         where id = $1",
        id,
        failed
    )
    .execute(c)
    .await?;
    Ok(())
}

/// Which keys encrypted what is stored, and how much: credentials and the secrets of webhook endpoints.
pub async fn count_by_key(c: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    let rows = sqlx::query!(
        r#"select key_id as "key_id!", count(*) as "n!"
           from (select key_id from credential union all select key_id from webhook_endpoint) as sealed
           group by key_id order by key_id"#
    )
    .fetch_all(c)
    .await?;
    Ok(rows.into_iter().map(|r| (r.key_id, r.n)).collect())
}

/// A part of a re-encryption.
#[derive(Debug, Default)]
pub struct Resealed {
    /// So many are under the current key now.
    pub done: usize,
    /// These could not be read, and stay as they are.
    pub failed: Vec<(Uuid, SealError)>,
    /// Where to go on; `None` at the end.
    pub last: Option<Uuid>,
}

/// Encrypts up to `limit` credentials anew that another known key encrypted, in the order of their ids from `after` on. To be
/// called in a transaction, again and again; whatever was committed stays done.
pub async fn reseal(c: &mut PgConnection, keys: &SealingKeys, after: Uuid, limit: i64) -> Result<Resealed> {
    let known = keys.ids();
    let rows = sqlx::query!(
        "select id, user_id, key_id, sealed from credential
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
                    "update credential set key_id = $2, sealed = $3 where id = $1",
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
