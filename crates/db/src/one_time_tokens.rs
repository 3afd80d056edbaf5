//! One-time tokens, which travel by e-mail: 256 random bits, `ot_` and base64url; only their SHA-256 is stored.
//!
//! Whoever consumes a token or voids several locks the user's row first ([`crate::users::lock`]), so that what changes one
//! account happens one after the other.

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

const PREFIX: &str = "ot_";

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To prove that an address belongs to its account.
    VerifyEmail,
    /// To set a new password without the old one.
    ResetPassword,
    /// To register: invited, or because the owner of the address asked for it.
    Invite,
}

impl Purpose {
    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VerifyEmail => "verify_email",
            Self::ResetPassword => "reset_password",
            Self::Invite => "invite",
        }
    }
}

/// The text of a token. It is in one e-mail and nowhere else.
pub struct OneTimeToken([u8; 32]);

impl OneTimeToken {
    /// A new random token; `None` when the system gives no randomness.
    pub fn generate() -> Option<Self> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// Reads a token; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// What the mail holds.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }

    /// What is stored.
    pub fn hash(&self) -> [u8; 32] {
        digest(&SHA256, &self.0).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// A token to be stored.
#[derive(Debug, Clone)]
pub struct NewOneTimeToken<'a> {
    /// SHA-256 of its text.
    pub hash: &'a [u8],
    /// What it is good for.
    pub purpose: Purpose,
    /// Whose; none for an `invite` token.
    pub user_id: Option<Uuid>,
    /// Where it is mailed to.
    pub email: &'a str,
    /// What an `invite` token opens; none when nobody invited: a sign-up.
    pub invitation_id: Option<Uuid>,
    /// The job that mails it.
    pub job_id: i64,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// What a token that still works belongs to.
#[derive(Debug, Clone)]
pub struct LiveToken {
    /// Whose; none for an `invite` token.
    pub user_id: Option<Uuid>,
    /// Where it was mailed to.
    pub email: Option<String>,
    /// What an `invite` token opens; none when nobody invited: a sign-up.
    pub invitation_id: Option<Uuid>,
}

/// Stores a token.
pub async fn insert(c: &mut PgConnection, new: &NewOneTimeToken<'_>) -> Result<()> {
    sqlx::query!(
        "insert into one_time_token (hash, purpose, user_id, email, invitation_id, job_id, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7)",
        new.hash,
        new.purpose.as_str(),
        new.user_id,
        new.email,
        new.invitation_id,
        new.job_id,
        new.expires_at,
    )
    .execute(c)
    .await?;
    Ok(())
}

/// Looks at a token without using it; `None` when it is unknown, was used, was voided or has expired.
pub async fn find(
    c: &mut PgConnection,
    purpose: Purpose,
    hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<LiveToken>> {
    let token = sqlx::query_as!(
        LiveToken,
        "select user_id, email, invitation_id from one_time_token
         where hash = $1 and purpose = $2 and used_at is null and revoked_at is null and expires_at > $3",
        hash,
        purpose.as_str(),
        now,
    )
    .fetch_optional(c)
    .await?;
    Ok(token)
}

/// Uses a token. Of any number of callers one gets it; the others get `None`, as for a token that [`find`] does not find.
pub async fn consume(
    c: &mut PgConnection,
    purpose: Purpose,
    hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Option<LiveToken>> {
    let token = sqlx::query_as!(
        LiveToken,
        "update one_time_token set used_at = $3
         where hash = $1 and purpose = $2 and used_at is null and revoked_at is null and expires_at > $3
         returning user_id, email, invitation_id",
        hash,
        purpose.as_str(),
        now,
    )
    .fetch_optional(c)
    .await?;
    Ok(token)
}

/// Voids a user's tokens of this purpose, but for those that `except_job` mailed.
pub async fn void(
    c: &mut PgConnection,
    purpose: Purpose,
    user_id: Uuid,
    except_job: Option<i64>,
) -> Result<()> {
    sqlx::query!(
        "update one_time_token set revoked_at = now()
         where user_id = $1 and purpose = $2 and used_at is null and revoked_at is null
           and ($3::bigint is null or job_id is distinct from $3)",
        user_id,
        purpose.as_str(),
        except_job,
    )
    .execute(c)
    .await?;
    Ok(())
}

/// How many other jobs mailed this user a token of this purpose since `since`.
pub async fn count_mails(
    c: &mut PgConnection,
    purpose: Purpose,
    user_id: Uuid,
    except_job: i64,
    since: DateTime<Utc>,
) -> Result<i64> {
    let count = sqlx::query_scalar!(
        r#"select count(distinct job_id) as "count!" from one_time_token
           where user_id = $1 and purpose = $2 and created_at > $4 and job_id is distinct from $3"#,
        user_id,
        purpose.as_str(),
        except_job,
        since,
    )
    .fetch_one(c)
    .await?;
    Ok(count)
}

/// Locks the sign-ups of an address until the transaction ends: there is no user's row yet to lock.
pub async fn lock_sign_ups(c: &mut PgConnection, email: &str) -> Result<()> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('sign-up ' || $1::text, 0))", email)
        .execute(c)
        .await?;
    Ok(())
}

/// Voids the sign-up tokens of an address, but for those that `except_job` mailed.
pub async fn void_sign_ups(c: &mut PgConnection, email: &str, except_job: i64) -> Result<()> {
    sqlx::query!(
        "update one_time_token set revoked_at = now()
         where email = $1 and purpose = 'invite' and user_id is null and invitation_id is null
           and used_at is null and revoked_at is null and job_id is distinct from $2",
        email,
        except_job,
    )
    .execute(c)
    .await?;
    Ok(())
}

/// How many other jobs mailed this address a sign-up token since `since`. The index over users finds them:
/// sign-ups and invitations are those without one, and the clean-up keeps them few.
pub async fn count_sign_ups(
    c: &mut PgConnection,
    email: &str,
    except_job: i64,
    since: DateTime<Utc>,
) -> Result<i64> {
    let count = sqlx::query_scalar!(
        r#"select count(distinct job_id) as "count!" from one_time_token
           where email = $1 and purpose = 'invite' and user_id is null and invitation_id is null
             and created_at > $3 and job_id is distinct from $2"#,
        email,
        except_job,
        since,
    )
    .fetch_one(c)
    .await?;
    Ok(count)
}

/// Deletes tokens that expired before `before`. Returns how many.
pub async fn delete_expired(c: &mut PgConnection, before: DateTime<Utc>) -> Result<u64> {
    let done = sqlx::query!("delete from one_time_token where expires_at < $1", before).execute(c).await?;
    Ok(done.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_nothing_else_is_one() {
        let token = OneTimeToken::generate().unwrap();
        let text = token.text();
        assert_eq!(text.len(), 46);
        assert_eq!(OneTimeToken::parse(&text).unwrap().hash(), token.hash());
        assert_ne!(token.hash(), token.0, "what is stored is not what is mailed");
        for bad in [
            "",
            "ot_",
            "ot_AAAA",
            &text[3..],
            &text[..45],
            &format!("{text}A"),
            &format!("rt_{}", &text[3..]),
        ] {
            assert!(OneTimeToken::parse(bad).is_none(), "{bad}");
        }
    }
}
