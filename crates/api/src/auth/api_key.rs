//! API keys: `blst_PUBLICID_SECRETCHECKSUM`, all lower-case hex.
//!
//! The public id finds the key, the secret proves it (only its SHA-256 is stored), and the checksum tells a mistyped or
//! invented key from a wrong one without asking anybody.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    constant_time,
    digest::{SHA256, digest},
    rand,
};
use chrono::{DateTime, Utc};
use limits::{OverrideProblem, Overrides, Policies};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::cache::Cache;

const PREFIX: &str = "blst_";
const PUBLIC: usize = 16;
const SECRET: usize = 64;
const CHECKSUM: usize = 8;

/// The parts of a key. Its text is shown once and never stored.
#[derive(Clone)]
pub struct ApiKeySecret {
    public_id: String,
    secret: String,
}

impl ApiKeySecret {
    /// A new random key.
    pub fn generate() -> anyhow::Result<Self> {
        let mut bytes = [0; PUBLIC / 2 + SECRET / 2];
        rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
        let all = hex(&bytes);
        Ok(Self { public_id: all[..PUBLIC].to_owned(), secret: all[PUBLIC..].to_owned() })
    }

    /// A key made of fixed parts, for the demo data of development.
    pub fn from_seed(seed: &str) -> Self {
        let all = format!(
            "{}{}",
            hex(digest(&SHA256, seed.as_bytes()).as_ref()),
            hex(digest(&SHA256, b"demo").as_ref())
        );
        Self { public_id: all[..PUBLIC].to_owned(), secret: all[PUBLIC..PUBLIC + SECRET].to_owned() }
    }

    /// Takes a key apart; `None` when it is malformed or its checksum does not fit.
    pub fn parse(text: &str) -> Option<Self> {
        let (public_id, rest) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let hex = |s: &str| s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if public_id.len() != PUBLIC || rest.len() != SECRET + CHECKSUM || !hex(public_id) || !hex(rest) {
            return None;
        }
        let (secret, checksum) = rest.split_at(SECRET);
        let key = Self { public_id: public_id.to_owned(), secret: secret.to_owned() };
        (key.checksum() == checksum).then_some(key)
    }

    /// True for what looks like a key of ours, well-formed or not.
    pub fn looks_like(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The whole key, to be shown once.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}_{}{}", self.public_id, self.secret, self.checksum())
    }

    /// The part that may be shown.
    pub fn public_id(&self) -> &str {
        &self.public_id
    }

    /// SHA-256 of the secret part.
    pub fn hash(&self) -> [u8; 32] {
        digest(&SHA256, self.secret.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn checksum(&self) -> String {
        let sum = digest(&SHA256, format!("{}{}", self.public_id, self.secret).as_bytes());
        hex(&sum.as_ref()[..CHECKSUM / 2])
    }
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |d: u8| char::from(b"0123456789abcdef"[usize::from(d)]);
    let mut out = String::with_capacity(2 * bytes.len());
    out.extend(bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]));
    out
}

/// What a key may do: the read-through record in Redis.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The key.
    pub id: Uuid,
    /// Whose.
    pub user_id: Uuid,
    /// The user's role.
    pub role: String,
    /// SHA-256 of the secret part, in hex.
    pub secret_hash: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Overrides of the rate limits.
    pub policy: serde_json::Value,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// Revoked, or its user disabled, or not there at all.
    pub dead: bool,
}

impl Record {
    /// The record of a database row.
    pub fn from_row(row: db::api_keys::KeyRecord) -> Self {
        Self {
            id: row.id,
            user_id: row.user_id,
            role: row.role,
            secret_hash: hex(&row.secret_hash),
            scopes: row.scopes,
            policy: row.policy,
            expires_at: row.expires_at,
            dead: row.dead,
        }
    }

    /// The record that stands for "there is no such key", so that guessing does not reach the database twice.
    pub fn nobody() -> Self {
        Self {
            id: Uuid::nil(),
            user_id: Uuid::nil(),
            role: String::new(),
            secret_hash: String::new(),
            scopes: Vec::new(),
            policy: serde_json::Value::Null,
            expires_at: None,
            dead: true,
        }
    }

    /// As it is stored: `ETAG|JSON`. The etag is a hash of the rest.
    pub fn encode(&self) -> anyhow::Result<String> {
        let json = serde_json::to_string(self)?;
        let etag = hex(&digest(&SHA256, json.as_bytes()).as_ref()[..8]);
        Ok(format!("{etag}|{json}"))
    }

    /// Reads what [`Self::encode`] wrote; `None` when it is malformed.
    pub fn decode(encoded: &str) -> Option<Self> {
        serde_json::from_str(encoded.split_once('|')?.1).ok()
    }

    /// Does this key open it, now?
    pub fn accepts(&self, key: &ApiKeySecret, now: DateTime<Utc>) -> bool {
        let hash = hex(&key.hash());
        let same =
            constant_time::verify_slices_are_equal(hash.as_bytes(), self.secret_hash.as_bytes()).is_ok();
        same && !self.dead && self.expires_at.is_none_or(|end| now < end)
    }
}

/// A record that this process has seen.
#[derive(Debug, Clone)]
pub struct Known {
    /// Tells it from other versions of the same record.
    pub etag: Arc<str>,
    /// The record.
    pub record: Arc<Record>,
    /// The limits of its own that it names.
    pub limits: Arc<Overrides>,
}

impl Known {
    /// Nothing is known.
    pub fn nobody() -> Self {
        Self { etag: "".into(), record: Record::nobody().into(), limits: Arc::default() }
    }
}

/// Records seen lately, by public id. Whether they are current is asked in the admission script.
#[derive(Debug)]
pub struct KeyRecords(Cache<String, (Known, Instant)>);

/// Reads limits as they are stored and as an administrator gives them: names of policies with limits as text.
pub fn overrides(policies: &Policies, stored: &serde_json::Value) -> (Overrides, Vec<OverrideProblem>) {
    let entries = stored.as_object().into_iter().flatten();
    // What is no text cannot be a limit, and is told as such.
    Overrides::parse(
        policies,
        entries.map(|(name, limit)| (name.as_str(), limit.as_str().unwrap_or_default())),
    )
}

/// While Redis is out, a record that is older is read again from the database.
const OLD: Duration = Duration::from_secs(30);

impl Default for KeyRecords {
    fn default() -> Self {
        Self(Cache::new(5_000))
    }
}

impl KeyRecords {
    /// What is known of this key.
    pub fn get(&self, public_id: &str) -> Option<Known> {
        self.0.get(public_id).map(|(known, _)| known)
    }

    /// True when the record is not there, or was not compared with the database lately.
    pub fn is_old(&self, public_id: &str) -> bool {
        self.0.get(public_id).is_none_or(|(_, since)| since.elapsed() > OLD)
    }

    /// Remembers an encoded record; `None` when it is malformed.
    pub fn remember(&self, policies: &Policies, public_id: &str, encoded: &str) -> Option<Known> {
        let (etag, _) = encoded.split_once('|')?;
        let record = Record::decode(encoded)?;
        let (limits, problems) = overrides(policies, &record.policy);
        for problem in problems {
            // The route that sets them lets none through: somebody wrote to the database, or it is of another release.
            tracing::warn!(api_key_id = %record.id, %problem, "a limit of an api key is ignored");
        }
        let known = Known { etag: etag.into(), record: record.into(), limits: limits.into() };
        self.0.insert(public_id.to_owned(), (known.clone(), Instant::now()));
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_no_changed_character_does() {
        let key = ApiKeySecret::generate().unwrap();
        let text = key.text();
        let parsed = ApiKeySecret::parse(&text).unwrap();
        assert_eq!((parsed.public_id(), parsed.hash()), (key.public_id(), key.hash()));
        for i in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[i] = if other[i] == b'0' { b'1' } else { b'0' };
            assert!(ApiKeySecret::parse(std::str::from_utf8(&other).unwrap()).is_none(), "changed at {i}");
        }
        for bad in ["", "blst_", "blst_x_y", &text[1..], &format!("{text}0"), &text.to_uppercase()] {
            assert!(ApiKeySecret::parse(bad).is_none(), "{bad}");
        }
    }
}
