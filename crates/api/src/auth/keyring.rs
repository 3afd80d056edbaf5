//! Access tokens: JWT (RFC 7519) with the profile of RFC 9068, signed with Ed25519 (RFC 8037), and nothing else.
//!
//! jsonwebtoken checks the signature; what its defaults would let pass is checked here (RFC 8725): the header's `typ`, `crit`
//! and `kid`, that every claim is there and of its type, a maximum lifetime, and all times against the process's clock.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use config::AuthConfig;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use runtime::Clock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cache::Cache;

/// Longer tokens are not ours.
const MAX_LENGTH: usize = 4 * 1024;
/// Seconds that two clocks may differ.
const LEEWAY: i64 = 5;
const TYP: &str = "at+jwt";
const CACHED_TOKENS: usize = 10_000;

/// What an access token says.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// For whom it is meant.
    pub aud: String,
    /// The user.
    pub sub: Uuid,
    /// The session.
    pub sid: Uuid,
    /// This token.
    pub jti: Uuid,
    /// Issued at, Unix seconds.
    pub iat: i64,
    /// Not before.
    pub nbf: i64,
    /// Not after.
    pub exp: i64,
    /// What it may do: the user's role.
    pub scope: String,
}

/// A freshly signed token.
#[derive(Debug, Clone)]
pub struct AccessToken {
    /// The token.
    pub token: String,
    /// Seconds until it ends.
    pub expires_in: i64,
}

/// Signs with one key, verifies with several.
pub struct Keyring {
    header: Header,
    signing: EncodingKey,
    verifying: BTreeMap<String, ([u8; 32], DecodingKey)>,
    issuer: String,
    audience: String,
    ttl: TimeDelta,
    clock: Clock,
    /// Verified tokens, whole: a signature costs 25 us, a hash that nobody can find a second token for costs 5, a look-up
    /// nothing. Times and revocation are checked every time.
    verified: Cache<Box<str>, Arc<Claims>>,
}

impl Keyring {
    /// Builds the keyring and proves that it works: a key that cannot sign must not wait for the first login.
    pub fn from_config(config: &AuthConfig, clock: Clock) -> anyhow::Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(config.signing_key.seed())
            .map_err(|e| anyhow::anyhow!("JWT_SIGNING_KEY is not an Ed25519 seed: {e}"))?;
        let public: [u8; 32] =
            pair.public_key().as_ref().try_into().context("an Ed25519 public key has 32 bytes")?;
        let pkcs8 =
            pair.to_pkcs8v1().map_err(|e| anyhow::anyhow!("JWT_SIGNING_KEY cannot be encoded: {e}"))?;
        let mut verifying = BTreeMap::new();
        let own = (config.signing_key.kid.clone(), public);
        for (kid, key) in config.verify_keys.iter().map(|k| (k.kid.clone(), k.public)).chain([own]) {
            verifying.insert(kid, (key, DecodingKey::from_ed_der(&key)));
        }
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(TYP.to_owned());
        header.kid = Some(config.signing_key.kid.clone());
        let keyring = Self {
            header,
            signing: EncodingKey::from_ed_der(pkcs8.as_ref()),
            verifying,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            ttl: TimeDelta::from_std(config.access_token_ttl)?,
            clock,
            verified: Cache::new(CACHED_TOKENS),
        };
        let probe = keyring.sign(Uuid::nil(), Uuid::nil(), "user")?;
        keyring
            .verify(&probe.token)
            .map_err(|reason| anyhow::anyhow!("the signing key fails its self-test: {reason}"))?;
        Ok(keyring)
    }

    /// Signs a token for a session.
    pub fn sign(&self, user_id: Uuid, session_id: Uuid, scope: &str) -> anyhow::Result<AccessToken> {
        let now = self.clock.now().timestamp();
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: user_id,
            sid: session_id,
            jti: Uuid::new_v4(),
            iat: now,
            nbf: now,
            exp: now + self.ttl.num_seconds(),
            scope: scope.to_owned(),
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.signing)?;
        Ok(AccessToken { token, expires_in: self.ttl.num_seconds() })
    }

    /// Verifies a token; the reason of a refusal is for logs and metrics.
    pub fn verify(&self, token: &str) -> Result<Arc<Claims>, &'static str> {
        if token.len() > MAX_LENGTH {
            return Err("too long");
        }
        let claims = if let Some(claims) = self.verified.get(token) {
            claims
        } else {
            let claims = Arc::new(self.verify_signature(token)?);
            self.verified.insert(token.into(), claims.clone());
            claims
        };
        let now = self.clock.now().timestamp();
        if now > claims.exp.saturating_add(LEEWAY) {
            return Err("expired");
        }
        if claims.nbf > now + LEEWAY || claims.iat > now + LEEWAY {
            return Err("not yet valid");
        }
        Ok(claims)
    }

    fn verify_signature(&self, token: &str) -> Result<Claims, &'static str> {
        let kid = checked_kid(token)?;
        let (_, key) = self.verifying.get(&kid).ok_or("unknown kid")?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Times are checked against our own clock, on every use.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &validation).map_err(|_| "invalid")?.claims;
        if claims.exp <= claims.iat
            || claims.exp.saturating_sub(claims.iat) > self.ttl.num_seconds().max(3_600)
        {
            return Err("lifetime out of bounds");
        }
        Ok(claims)
    }

    /// The public keys as a JWK set (RFC 7517, RFC 8037).
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self
            .verifying
            .iter()
            .map(|(kid, (public, _))| {
                json!({
                    "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig",
                    "kid": kid, "x": URL_SAFE_NO_PAD.encode(public),
                })
            })
            .collect();
        json!({ "keys": keys })
    }
}

/// Reads the header with our own eyes, before any key is chosen by it.
fn checked_kid(token: &str) -> Result<String, &'static str> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)] // jku, x5u, jwk, crit and what else may come: not ours
    struct StrictHeader {
        alg: String,
        typ: String,
        kid: String,
    }
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("not three parts");
    };
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| "header is not base64url")?;
    let header: StrictHeader = serde_json::from_slice(&header).map_err(|_| "unexpected header")?;
    if header.alg != "EdDSA" || header.typ != TYP {
        return Err("alg or typ is not ours");
    }
    let kid_ok = (1..=64).contains(&header.kid.len())
        && header.kid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if kid_ok { Ok(header.kid) } else { Err("malformed kid") }
}

#[cfg(test)]
mod tests {
    use config::{ApiConfig, MapVars};

    use super::*;

    fn keyring(clock: &Clock) -> Keyring {
        runtime::install_crypto_provider();
        let vars = MapVars::from([
            ("DATABASE_URL", "postgres://u@h/d"),
            ("REDIS_URL", "redis://h"),
            ("ENGINE_URL", "http://h"),
        ]);
        Keyring::from_config(&ApiConfig::from_vars(&vars).unwrap().auth, clock.clone()).unwrap()
    }

    fn token(keyring: &Keyring) -> String {
        keyring.sign(Uuid::now_v7(), Uuid::now_v7(), "user").unwrap().token
    }

    #[test]
    fn the_cache_of_verified_tokens_is_bounded_and_forged_ones_do_not_get_in() {
        let mut keyring = keyring(&Clock::system());
        keyring.verified = Cache::new(20);
        let tokens: Vec<String> = (0..200).map(|_| token(&keyring)).collect();
        for token in &tokens {
            keyring.verify(token).unwrap();
            assert!(keyring.verified.len() <= 40);
        }
        assert!(keyring.verified.len() > 20, "it is used");
        keyring.verified = Cache::new(20);
        for token in &tokens {
            let (text, _) = token.rsplit_once('.').unwrap();
            keyring.verify(&format!("{text}.{}", "A".repeat(86))).unwrap_err();
        }
        assert_eq!(keyring.verified.len(), 0);
    }

    #[test]
    fn a_cached_token_is_refused_when_its_time_is_over() {
        let clock = Clock::system();
        let keyring = keyring(&clock);
        let token = token(&keyring);
        for _ in 0..2 {
            keyring.verify(&token).unwrap();
        }
        clock.advance(keyring.ttl + TimeDelta::seconds(LEEWAY + 1));
        assert_eq!(keyring.verify(&token), Err("expired"));
    }
}
