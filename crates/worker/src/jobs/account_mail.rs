//! `account_mail`: makes a one-time token and mails it.
//!
//! The token exists in this process and in the mail; the database has its hash, and the job's payload has neither. So an
//! attempt that is made again makes another token. Both work until one of them is used, because nobody knows which of two
//! mails arrived. A later job, which somebody asked for, voids them.
//!
//! To delete it: this file, its lines in `jobs.rs`, its payload and its line in `job-specs`, and the routes of `docs/accounts.md` that
//! enqueue it.

use chrono::{DateTime, TimeDelta, Utc};
use config::WorkerConfig;
use db::{
    PgConnection,
    one_time_tokens::{self as tokens, NewOneTimeToken, OneTimeToken, Purpose},
    users::User,
};
use job_specs::{AccountMail, Asked, SendEmail};
use jobs::{JobContext, JobError};
use serde_json::json;

use crate::{Context, mail::Sent};

/// How long a mail about an address can be answered.
const ADDRESS_TTL: TimeDelta = TimeDelta::hours(24);
/// How long a mail about a password can be answered.
const RESET_PASSWORD_TTL: TimeDelta = TimeDelta::hours(1);
/// Mails of one kind to one address in an hour, whoever asks for them and from wherever. The last one still works, so nobody
/// is locked out by a stranger who asks in his name.
const MAILS_PER_HOUR: i64 = 5;

/// What a token is sent for, and to whom.
struct Letter {
    to: String,
    subject: &'static str,
    /// Why the mail came.
    why: String,
    /// The page of the front end that takes the token.
    page: &'static str,
    /// The route that takes it, for those without a front end.
    route: &'static str,
    /// When it ends.
    until: DateTime<Utc>,
}

/// Sends what is due. Finds out by itself when there is nothing to send: no such account, confirmed already, revoked.
pub async fn run(context: Context, attempt: JobContext, mail: AccountMail) -> Result<Sent, JobError> {
    let token = OneTimeToken::generate().ok_or_else(|| anyhow::anyhow!("the system gives no randomness"))?;
    let now = runtime::Clock::system().now();
    let letter = context
        .database
        .transaction::<_, JobError>("one_time_tokens.issue", async |c| {
            Ok(issue(c, &attempt, &mail, &token, now).await?)
        })
        .await?;
    let Some(letter) = letter else { return Ok(Sent::default()) };
    // A key for each attempt: the provider refuses another text under the same key, and the token differs.
    let key = format!("job-{}-{}", attempt.id(), attempt.attempt());
    context.mailer.send(&letter.with(&token, &context.config), &key).await
}

/// Stores the token, and says what to write. `None` when there is nothing to send.
async fn issue(
    c: &mut PgConnection,
    attempt: &JobContext,
    mail: &AccountMail,
    token: &OneTimeToken,
    now: DateTime<Utc>,
) -> db::Result<Option<Letter>> {
    match mail {
        AccountMail::VerifyEmail { user_id } => {
            let user = db::users::lock(c, *user_id).await?;
            let Some(user) = user.filter(|u| u.email_verified_at.is_none() && u.disabled_at.is_none()) else {
                return Ok(None);
            };
            let until = now + ADDRESS_TTL;
            let stored = store(c, attempt, Purpose::VerifyEmail, &user, token, (now, until)).await?;
            Ok(stored.then(|| verify_email(user.email, until)))
        }
        AccountMail::ResetPassword(asked) => match db::users::find_by_email(c, &asked.email).await? {
            Some(user) => {
                let until = reset_token(c, attempt, &user, asked, token, now).await?;
                Ok(until.map(|until| reset_password(user.email, until)))
            }
            None => Ok(None),
        },
        AccountMail::SignUp(asked) => {
            tokens::lock_sign_ups(c, &asked.email).await?;
            if let Some(user) = db::users::find_by_email(c, &asked.email).await? {
                let until = reset_token(c, attempt, &user, asked, token, now).await?;
                return Ok(until.map(|until| account_exists(user.email, until)));
            }
            let until = now + ADDRESS_TTL;
            let stored = store_sign_up(c, attempt, &asked.email, token, (now, until)).await?;
            Ok(stored.then(|| sign_up(asked.email.clone(), until)))
        }
        AccountMail::Invite { invitation_id } => {
            let Some(invitation) = db::invitations::find_open(c, *invitation_id, now).await? else {
                return Ok(None);
            };
            let new = NewOneTimeToken {
                hash: &token.hash(),
                purpose: Purpose::Invite,
                user_id: None,
                email: &invitation.email,
                invitation_id: Some(invitation.id),
                job_id: attempt.id(),
                expires_at: invitation.expires_at,
            };
            tokens::insert(c, &new).await?;
            Ok(Some(invite(invitation.email, invitation.expires_at)))
        }
    }
}

/// Stores a token to reset the password, and returns its end; `None` when this account gets no mail.
async fn reset_token(
    c: &mut PgConnection,
    attempt: &JobContext,
    user: &User,
    asked: &Asked,
    token: &OneTimeToken,
    now: DateTime<Utc>,
) -> db::Result<Option<DateTime<Utc>>> {
    if user.disabled_at.is_some() {
        return Ok(None);
    }
    db::users::lock(c, user.id).await?;
    let until = now + RESET_PASSWORD_TTL;
    if !store(c, attempt, Purpose::ResetPassword, user, token, (now, until)).await? {
        return Ok(None);
    }
    if attempt.attempt() == 1 {
        let event = db::audit::Event {
            event: "password_reset_requested",
            user_id: Some(user.id),
            ip: Some(asked.ip),
            request_id: Some(&asked.request_id),
            detail: json!({ "job_id": attempt.id() }),
            ..Default::default()
        };
        db::audit::insert(c, &event).await?;
    }
    Ok(Some(until))
}

/// Stores a token to register and voids those of earlier jobs; false when the mailbox has had enough for now.
async fn store_sign_up(
    c: &mut PgConnection,
    attempt: &JobContext,
    email: &str,
    token: &OneTimeToken,
    (now, expires_at): (DateTime<Utc>, DateTime<Utc>),
) -> db::Result<bool> {
    let lately = now - TimeDelta::hours(1);
    if tokens::count_sign_ups(c, email, attempt.id(), lately).await? >= MAILS_PER_HOUR {
        tracing::warn!(job_id = attempt.id(), "too many sign-ups of one address in an hour");
        return Ok(false);
    }
    tokens::void_sign_ups(c, email, attempt.id()).await?;
    let new = NewOneTimeToken {
        hash: &token.hash(),
        purpose: Purpose::Invite,
        user_id: None,
        email,
        invitation_id: None,
        job_id: attempt.id(),
        expires_at,
    };
    tokens::insert(c, &new).await?;
    Ok(true)
}

/// Stores a user's token and voids those of earlier jobs; false when the mailbox has had enough for now.
async fn store(
    c: &mut PgConnection,
    attempt: &JobContext,
    purpose: Purpose,
    user: &User,
    token: &OneTimeToken,
    (now, expires_at): (DateTime<Utc>, DateTime<Utc>),
) -> db::Result<bool> {
    let lately = now - TimeDelta::hours(1);
    if tokens::count_mails(c, purpose, user.id, attempt.id(), lately).await? >= MAILS_PER_HOUR {
        tracing::warn!(user_id = %user.id, purpose = purpose.as_str(), "too many mails to one account in an hour");
        return Ok(false);
    }
    tokens::void(c, purpose, user.id, Some(attempt.id())).await?;
    let new = NewOneTimeToken {
        hash: &token.hash(),
        purpose,
        user_id: Some(user.id),
        email: &user.email,
        invitation_id: None,
        job_id: attempt.id(),
        expires_at,
    };
    tokens::insert(c, &new).await?;
    Ok(true)
}

fn verify_email(to: String, until: DateTime<Utc>) -> Letter {
    Letter {
        to,
        subject: "Confirm your e-mail address",
        why: "There is an account with this address.".to_owned(),
        page: "verify-email",
        route: "/v1/auth/verify-email",
        until,
    }
}

fn reset_password(to: String, until: DateTime<Utc>) -> Letter {
    Letter {
        to,
        subject: "Reset your password",
        why: "Somebody asked to reset the password of the account with this address.".to_owned(),
        page: "reset-password",
        route: "/v1/auth/password/reset",
        until,
    }
}

fn account_exists(to: String, until: DateTime<Utc>) -> Letter {
    Letter {
        subject: "You have an account already",
        why:
            "Somebody wanted to register with this address, and there is an account with it: log in instead. \
              If the password is forgotten, set a new one:"
                .to_owned(),
        ..reset_password(to, until)
    }
}

fn sign_up(to: String, until: DateTime<Utc>) -> Letter {
    let why = format!("Somebody asked to register as {to}.");
    Letter { why, subject: "Finish your registration", ..invite(to, until) }
}

fn invite(to: String, until: DateTime<Utc>) -> Letter {
    Letter {
        why: format!("You are invited to register as {to}."),
        to,
        subject: "Your invitation",
        page: "register",
        route: "/v1/auth/register",
        until,
    }
}

impl Letter {
    /// The token stands behind the #: what browsers send to nobody, so that it is in no log.
    fn with(self, token: &OneTimeToken, config: &WorkerConfig) -> SendEmail {
        let Self { to, subject, why, page, route, until } = self;
        let until = until.format("%Y-%m-%d %H:%M");
        let token = token.text();
        let way = if let Some(app) = &config.mail.app_url {
            format!("{}/{page}#token={token}", app.as_str().trim_end_matches('/'))
        } else {
            let api = config.public_url.as_str().trim_end_matches('/');
            format!("Token: {token}\nSend it to: POST {api}{route}")
        };
        let text = format!(
            "{why}\n\n{way}\n\nThis works once, until {until} UTC. If it was not you, do nothing: then nothing happens.\n"
        );
        SendEmail { to, subject: subject.to_owned(), text, html: None }
    }
}
