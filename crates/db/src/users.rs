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

/// Replaces the password hash.
pub async fn set_password_hash(c: &mut PgConnection, id: Uuid, password_hash: &str) -> Result<()> {
    sqlx::query!("update users set password_hash = $2, updated_at = now() where id = $1", id, password_hash)
        .execute(c)
        .await?;
    Ok(())
}
