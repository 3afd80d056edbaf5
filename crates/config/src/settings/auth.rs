//! Tokens, sessions, passwords.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::{DAY, HOUR, S};
use crate::{SignUp, SigningKey, VerifyKey, reader::Reader};

/// Tokens, sessions, passwords.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Signs access tokens.
    pub signing_key: SigningKey,
    /// Accepted beside it.
    pub verify_keys: Vec<VerifyKey>,
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audience: String,
    /// Lifetime of an access token.
    pub access_token_ttl: Duration,
    /// Longest pause between two refreshes.
    pub refresh_token_ttl: Duration,
    /// Longest life of a session.
    pub session_max_age: Duration,
    /// Server key for derivations and pseudonyms.
    pub server_secret: SecretString,
    /// Who may register.
    pub signup: SignUp,
    /// Password hashings at a time.
    pub password_hash_concurrency: usize,
}

impl AuthConfig {
    pub(super) fn read(r: &mut Reader<'_>, public_url: Option<&Url>) -> Option<Self> {
        let signing_key = r.get::<SigningKey>("JWT_SIGNING_KEY");
        let verify_keys = r.list("JWT_VERIFY_KEYS", str::parse::<VerifyKey>);
        let issuer = r.get::<String>("JWT_ISSUER");
        let audience = r.get::<String>("JWT_AUDIENCE");
        let access_token_ttl = r.duration("ACCESS_TOKEN_TTL", S(60), S(HOUR));
        let refresh_token_ttl = r.duration("REFRESH_TOKEN_TTL", S(HOUR), S(365 * DAY));
        let session_max_age = r.duration("SESSION_MAX_AGE", S(HOUR), S(3_650 * DAY));
        let server_secret = r.with("SERVER_SECRET", |t| hex_secret(t, 32));
        let signup = r.get::<SignUp>("SIGNUP");
        let concurrency = r.number("PASSWORD_HASH_CONCURRENCY", 1, 64);
        if let (Some(signing), Some(verify)) = (&signing_key, &verify_keys) {
            let mut kids: Vec<&str> =
                verify.iter().map(|k| k.kid.as_str()).chain([signing.kid.as_str()]).collect();
            kids.sort_unstable();
            if kids.windows(2).any(|pair| pair[0] == pair[1]) {
                r.problem(
                    "JWT_VERIFY_KEYS",
                    "every key needs a key id of its own, different from the signing key's",
                );
            }
        }
        let issuer = issuer.or_else(|| public_url.map(|u| u.as_str().trim_end_matches('/').to_owned()));
        Some(Self {
            signing_key: signing_key?,
            verify_keys: verify_keys?,
            issuer: issuer?,
            audience: audience?,
            access_token_ttl: access_token_ttl?,
            refresh_token_ttl: refresh_token_ttl?,
            session_max_age: session_max_age?,
            server_secret: server_secret?,
            signup: signup?,
            password_hash_concurrency: concurrency? as usize,
        })
    }
}

fn hex_secret(text: &str, bytes: usize) -> Result<SecretString, String> {
    let hex = text.len() == bytes * 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let first = text.get(..2).unwrap_or_default();
    if !hex || text.as_bytes().chunks(2).all(|pair| pair == first.as_bytes()) {
        return Err(format!(
            "expected {bytes} random bytes as {} hex digits; make them with `ballast keygen`",
            bytes * 2
        ));
    }
    Ok(SecretString::from(text))
}
