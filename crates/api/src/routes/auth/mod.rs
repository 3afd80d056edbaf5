//! Registration, login, refresh, logout.

mod login;
mod logout;
mod refresh;
mod register;

use std::fmt;

use axum::{extract::DefaultBodyLimit, middleware};
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    auth::{RefreshSecret, hex},
    body,
};

/// Larger bodies have no business here.
const MAX_BODY: usize = 4 * 1024;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(register::register))
        .routes(routes!(login::login))
        .routes(routes!(refresh::refresh))
        .routes(routes!(logout::logout))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(body::refuse_longer_than::<MAX_BODY>))
}

/// What a login or a refresh answers (RFC 6749, section 5.1).
#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    /// A JSON web token, to be sent as `Authorization: Bearer`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// Seconds until the access token ends.
    expires_in: i64,
    /// Buys the next pair of tokens, once.
    refresh_token: String,
}

/// E-mail and password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ann@example.com", "password": "correct horse battery staple"}))]
pub(super) struct EmailAndPassword {
    /// The account's address.
    email: String,
    /// 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128)]
    password: String,
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"refresh_token": "as it came from login or refresh"}))]
pub(super) struct RefreshTokenBody {
    /// As it came from login or refresh.
    refresh_token: String,
}

/// Trims, composes (NFC) and lower-cases an address; the part before the @ is lower-cased too, because people do not know
/// that it may matter and no large provider lets it.
pub fn normalize_email(text: &str) -> Result<String> {
    let email: String = text.trim().nfc().collect::<String>().to_lowercase();
    let well_formed = email.split_once('@').is_some_and(|(local, domain)| {
        (1..=64).contains(&local.len())
            && domain.contains('.')
            && !domain.starts_with(['.', '-'])
            && !domain.ends_with(['.', '-'])
            && !domain.contains('@')
            && !domain.contains("..")
    });
    let printable = !email.chars().any(|c| c.is_whitespace() || c.is_control());
    if well_formed && printable && email.len() <= 254 {
        Ok(email)
    } else {
        Err(Error::invalid("email", "is not an e-mail address"))
    }
}

/// An address as it may appear in Redis keys: recognisable by us, by nobody else.
pub(crate) fn pseudonym(state: &AppState, email: &str) -> String {
    use aws_lc_rs::hmac;
    use secrecy::ExposeSecret as _;
    let key = hmac::Key::new(hmac::HMAC_SHA256, state.config.auth.server_secret.expose_secret().as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(b"email-pseudonym/v1");
    context.update(email.as_bytes());
    hex(&context.sign().as_ref()[..16])
}

/// The pair of tokens for a session.
fn tokens(
    state: &AppState,
    user_id: Uuid,
    session_id: Uuid,
    role: &str,
    refresh: &RefreshSecret,
) -> Result<Tokens> {
    let access = state.keyring.sign(user_id, session_id, role).map_err(Error::internal)?;
    Ok(Tokens {
        access_token: access.token,
        token_type: "Bearer",
        expires_in: access.expires_in,
        refresh_token: refresh.text(),
    })
}

fn delta(duration: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

impl fmt::Debug for EmailAndPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmailAndPassword")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalised_and_nonsense_is_refused() {
        assert_eq!(normalize_email(" Ann@Example.COM ").unwrap(), "ann@example.com");
        assert_eq!(
            normalize_email("e\u{301}@example.com").unwrap(),
            normalize_email("é@example.com").unwrap()
        );
        for bad in
            ["", "a", "@b.c", "a@", "a@b", "a b@c.d", "a@b..c", "a@.b.c", "a@b@c.d", "a\0@b.c", "a\r\n@b.c"]
        {
            assert!(normalize_email(bad).is_err(), "{bad:?}");
        }
        assert!(normalize_email(&format!("a@{}.com", "x".repeat(260))).is_err());
    }
}
