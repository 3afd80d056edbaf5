//! Registration, login, refresh, logout, and what a person does with an account of his own.

mod change_password;
mod forgot_password;
mod login;
mod logout;
mod logout_all;
mod refresh;
mod register;
mod resend_verification;
mod reset_password;
mod sign_up;
mod verify_email;

use axum::{
    http::{HeaderMap, StatusCode},
    middleware,
    response::IntoResponse,
};
use chrono::{DateTime, TimeDelta, Utc};
use job_specs::{AccountMail, Asked};
use jobs::EnqueueOptions;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization as _;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    admission::Anonymous,
    auth::{RefreshSecret, SetCookie, hex, refresh_cookie, set_cookie},
    body,
    extract::Json,
};

/// Larger bodies have no business here.
const MAX_BODY: usize = 4 * 1024;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(sign_up::sign_up))
        .routes(routes!(register::register))
        .routes(routes!(login::login))
        .routes(routes!(refresh::refresh))
        .routes(routes!(logout::logout))
        .routes(routes!(logout_all::logout_all))
        .routes(routes!(verify_email::verify_email))
        .routes(routes!(resend_verification::resend_verification))
        .routes(routes!(change_password::change_password))
        .routes(routes!(forgot_password::forgot_password))
        .routes(routes!(reset_password::reset_password))
        .layer(middleware::from_fn(body::limit_to::<MAX_BODY>))
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
    /// Buys the next pair of tokens, once. Absent when it is in the cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
}

/// What a stranger is told who asks for a mail.
#[derive(Serialize, ToSchema)]
pub(super) struct OnItsWay {
    /// Always the same.
    message: &'static str,
}

/// Has a mail sent by a job, which only then looks whether there is an account: text, status and time of the answer say nothing.
async fn ask_for_mail(
    state: &AppState,
    anonymous: &Anonymous,
    email: String,
    mail: fn(Asked) -> AccountMail,
    message: &'static str,
) -> Result<impl IntoResponse + use<>> {
    let (ip, request_id) = (anonymous.client.0, anonymous.request_id.as_ref().to_owned());
    let mail = mail(Asked { email, ip, request_id });
    state
        .database
        .transaction::<_, Error>("jobs.enqueue", async |c| {
            Ok(jobs::enqueue(c, &mail, EnqueueOptions::default()).await?)
        })
        .await?;
    Ok((StatusCode::ACCEPTED, Json(OnItsWay { message })))
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RefreshTokenBody {
    /// As it came from login or refresh. Without it, the cookie counts.
    refresh_token: Option<String>,
}

/// A refresh token that a client sent.
struct Presented {
    token: String,
    in_cookie: bool,
}

impl Presented {
    /// From the body if it is there: then the browser's cookie does not matter, and nobody can have sent it for the client.
    fn read(state: &AppState, headers: &HeaderMap, body: Option<Json<RefreshTokenBody>>) -> Result<Self> {
        if let Some(token) = body.and_then(|Json(body)| body.refresh_token) {
            return Ok(Self { token, in_cookie: false });
        }
        let missing = || Error::invalid("refresh_token", "is required, in the body or as the cookie");
        let token = refresh_cookie(state, headers)?.ok_or_else(missing)?;
        Ok(Self { token, in_cookie: true })
    }
}

/// A session that goes on with a new refresh token.
struct Issued {
    user_id: Uuid,
    session_id: Uuid,
    role: String,
    refresh_expires: DateTime<Utc>,
}

impl Issued {
    /// The pair of tokens, the refresh token in the body or in the cookie.
    fn answer(
        self,
        state: &AppState,
        refresh: &RefreshSecret,
        in_cookie: bool,
    ) -> Result<(Option<SetCookie>, Json<Tokens>)> {
        let access =
            state.keyring.sign(self.user_id, self.session_id, &self.role).map_err(Error::internal)?;
        let lives = (self.refresh_expires - state.clock.now()).num_seconds();
        let tokens = Tokens {
            access_token: access.token,
            token_type: "Bearer",
            expires_in: access.expires_in,
            refresh_token: (!in_cookie).then(|| refresh.text()),
        };
        Ok((in_cookie.then(|| set_cookie(refresh, lives)), Json(tokens)))
    }
}

/// Trims, composes (NFC) and lower-cases an address; the part before the @ is lower-cased too, because people do not know
/// that it may matter and no large provider lets it. The domain is in its ASCII form (RFC 5891).
///
/// One mailbox is to be one account, so nothing is taken that a mail system reads as another address: no quotes, comments, routes
/// or lists (RFC 5322, section 3.4), and no characters that are not seen.
pub fn normalize_email(text: &str) -> Result<String> {
    let invalid = || Error::invalid("email", "is not an e-mail address");
    let email: String = text.trim().nfc().collect::<String>().to_lowercase().nfc().collect();
    let (local, domain) = email.split_once('@').ok_or_else(invalid)?;
    let atoms =
        (1..=64).contains(&local.len()) && local.split('.').all(|a| !a.is_empty() && a.chars().all(is_atom));
    // The parser would decode percents.
    let plain = domain.contains('.') && !domain.contains('%') && !domain.chars().any(is_unseen);
    let domain = match url::Host::parse(domain) {
        Ok(url::Host::Domain(domain)) if plain && atoms => domain,
        _ => return Err(invalid()),
    };
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let email = format!("{local}@{domain}");
    if domain.split('.').all(label) && email.len() <= 254 { Ok(email) } else { Err(invalid()) }
}

/// What may stand in the part before the @ without quotes (RFC 5322, section 3.2.3; RFC 6532, section 3.2).
fn is_atom(c: char) -> bool {
    if c.is_ascii() {
        c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c)
    } else {
        !c.is_whitespace() && !c.is_control() && !is_unseen(c)
    }
}

/// Characters without a shape: soft hyphen, joiners, marks of direction, fillers, tags.
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
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

fn delta(duration: std::time::Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

/// What every way to a wrong one-time token is answered.
fn invalid_one_time_token() -> Error {
    let detail = "The token is unknown, was used, or has expired: ask for a new mail.";
    Error::forbidden("invalid_one_time_token", detail)
}

fn signup_closed() -> Error {
    Error::forbidden("signup_closed", "Sign-up is closed: ask the operator for an account.")
}

fn invitation_required() -> Error {
    let detail = "Sign-up is by invitation: send the token of your invitation as `invitation_token`.";
    Error::forbidden("invitation_required", detail)
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
        assert_eq!(normalize_email("Ann@M\u{fc}nchen.DE").unwrap(), "ann@xn--mnchen-3ya.de");
        assert_eq!(
            normalize_email("ann@\u{ff45}xample.com").unwrap(),
            "ann@example.com",
            "full-width letters"
        );
        // The Kelvin sign: a look-alike that every mail system reads as k.
        assert_eq!(normalize_email("\u{212a}im@example.com").unwrap(), "kim@example.com");
        assert_eq!(normalize_email("ann+news@example.com").unwrap(), "ann+news@example.com");
        for bad in [
            "",
            "a",
            "@b.c",
            "a@",
            "a@b",
            "a b@c.d",
            "a@b..c",
            "a@.b.c",
            "a@b.c.",
            "a@-b.c",
            "a@b-.c",
            "a@b@c.d",
            "a\0@b.c",
            "a\r\n@b.c",
            "a@[127.0.0.1]",
            "a@127.0.0.1",
            "a@b_c.d",
            "a@%61.b",
            ".a@b.c",
            "a.@b.c",
            "a..b@c.d",
            // What a mail system would take for another address.
            "x<a@b.c>",
            "\"x\"<a@b.c>",
            "<a@b.c>",
            "\"a\"@b.c",
            "(x)a@b.c",
            "a@b.c,d.e",
            "a,d@b.c",
            "a;d@b.c",
            "x:a@b.c",
            "a@b.c>",
            "a\\@b.c",
            // What nobody sees.
            "a\u{200b}@b.c",
            "a@b\u{ad}.c",
            "a\u{202e}@b.c",
            "\u{feff}a@b.c",
            "a\u{fe0f}@b.c",
            "a\u{e0041}@b.c",
        ] {
            assert!(normalize_email(bad).is_err(), "{bad:?}");
        }
        assert!(normalize_email(&format!("a@{}.com", "x".repeat(260))).is_err());
    }

    proptest::proptest! {
        /// What was normalised stays as it is: an account is found by the address that is stored.
        #[test]
        fn a_normalised_address_is_its_own_normal_form(text in "\\PC{1,12}@\\PC{1,8}\\.[a-z\u{e9}\u{130}\u{df}]{1,4}") {
            if let Ok(email) = normalize_email(&text) {
                proptest::prop_assert_eq!(normalize_email(&email).unwrap(), email);
            }
        }
    }
}
