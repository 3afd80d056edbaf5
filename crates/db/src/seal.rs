//! Encryption of secrets that have to be read again: what [`crate::credentials`] and [`crate::webhook_endpoints`] store.
//!
//! AES-256-GCM (NIST SP 800-38D) with a random nonce and, as associated data, whose secret it is in which row: a ciphertext
//! that is copied into another row, or to another user, does not open. Random nonces are good for 2^32 messages under one
//! key, which is far beyond what users store.
//!
//! Keys have ids, which are kept with what they encrypted. An id is derived from its key, so nobody has to name keys or can
//! mix the names up. The first key of the configuration encrypts; all of them decrypt: that is how keys are rotated
//! (`docs/runbooks/key-rotation.md`).

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hmac,
};
use config::EncryptionKey;
use secrecy::{ExposeSecret as _, SecretString};
use uuid::Uuid;

/// Goes into the associated data: another version, or another use of the same keys, opens nothing of this one. Without the project's
/// name, which may change while secrets are stored.
const CONTEXT: &[u8] = b"stored-credential/v1";

/// The keys: the first encrypts, all decrypt.
#[derive(Debug)]
pub struct SealingKeys(Vec<(String, RandomizedNonceKey)>);

/// An encrypted secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Which key it takes to open it.
    pub key_id: String,
    /// Nonce, ciphertext, tag.
    pub bytes: Vec<u8>,
}

/// A secret cannot be encrypted or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key is not configured here.
    #[error("it is encrypted with the key {0}, which CHANNEL_ENCRYPTION_KEY does not hold")]
    UnknownKey(String),
    /// Changed, cut, or copied from somewhere else.
    #[error("what is stored is damaged, or belongs to another row or user")]
    Damaged,
    /// The library refused.
    #[error("the encryption failed")]
    Failed,
}

impl SealingKeys {
    /// The keys of the configuration, in their order.
    ///
    /// # Errors
    /// When there is none; the configuration refuses that earlier.
    pub fn from_config(keys: &[EncryptionKey]) -> Result<Self, SealError> {
        let ring = |key: &EncryptionKey| {
            let ring = RandomizedNonceKey::new(&AES_256_GCM, key.bytes()).map_err(|_| SealError::Failed)?;
            Ok((key_id(key), ring))
        };
        let keys = keys.iter().map(ring).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(SealError::Failed) } else { Ok(Self(keys)) }
    }

    /// The id of the key that encrypts.
    pub fn current(&self) -> &str {
        &self.0[0].0
    }

    /// The ids of all keys.
    pub fn ids(&self) -> Vec<String> {
        self.0.iter().map(|(id, _)| id.clone()).collect()
    }

    /// Encrypts a user's secret for a row.
    pub fn seal(&self, row: Uuid, user: Uuid, secret: &SecretString) -> Result<Sealed, SealError> {
        let (id, key) = &self.0[0];
        let mut text = secret.expose_secret().as_bytes().to_vec();
        let nonce =
            key.seal_in_place_append_tag(binding(row, user), &mut text).map_err(|_| SealError::Failed)?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut text);
        Ok(Sealed { key_id: id.clone(), bytes })
    }

    /// Decrypts what was sealed for this row and user.
    pub fn open(&self, row: Uuid, user: Uuid, sealed: &Sealed) -> Result<SecretString, SealError> {
        let known = self.0.iter().find(|(id, _)| *id == sealed.key_id);
        let (_, key) = known.ok_or_else(|| SealError::UnknownKey(sealed.key_id.clone()))?;
        let (nonce, text) = sealed.bytes.split_at_checked(NONCE_LEN).ok_or(SealError::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Damaged)?;
        let mut text = text.to_vec();
        let length =
            key.open_in_place(nonce, binding(row, user), &mut text).map_err(|_| SealError::Damaged)?.len();
        text.truncate(length);
        let text = String::from_utf8(text).map_err(|_| SealError::Damaged)?;
        Ok(SecretString::from(text))
    }

    /// Encrypts with the current key what another one encrypted.
    pub fn renew(&self, row: Uuid, user: Uuid, old: &Sealed) -> Result<Sealed, SealError> {
        self.seal(row, user, &self.open(row, user, old)?)
    }
}

fn binding(row: Uuid, user: Uuid) -> Aad<Vec<u8>> {
    Aad::from([CONTEXT, row.as_bytes(), user.as_bytes()].concat())
}

/// A key's id: a quarter of a MAC of a constant. It tells keys apart and says nothing about them.
fn key_id(key: &EncryptionKey) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.bytes());
    let mac = hmac::sign(&key, b"stored-credential/key-id/v1");
    let first: [u8; 8] = mac.as_ref()[..8].try_into().expect("a MAC of SHA-256 has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(seeds: &[u8]) -> SealingKeys {
        let keys: Vec<EncryptionKey> =
            seeds.iter().map(|n| format!("{}{n:02x}", "5a".repeat(31)).parse().unwrap()).collect();
        SealingKeys::from_config(&keys).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_for_its_row_and_user_and_for_nothing_else() {
        let keys = keys(&[1]);
        let (row, user, other) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let secret = SecretString::from("sk-canary ünd 🎉");
        let sealed = keys.seal(row, user, &secret).unwrap();
        assert_eq!(keys.open(row, user, &sealed).unwrap().expose_secret(), secret.expose_secret());
        for (row, user) in [(other, user), (row, other), (user, row)] {
            assert_eq!(keys.open(row, user, &sealed).unwrap_err(), SealError::Damaged);
        }
    }

    #[test]
    fn no_changed_or_missing_byte_goes_unnoticed() {
        let keys = keys(&[1]);
        let (row, user) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let sealed = keys.seal(row, user, &SecretString::from("secret")).unwrap();
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[at] ^= 1;
            assert_eq!(keys.open(row, user, &changed).unwrap_err(), SealError::Damaged, "changed at {at}");
            let cut = Sealed { bytes: sealed.bytes[..at].to_vec(), ..sealed.clone() };
            assert_eq!(keys.open(row, user, &cut).unwrap_err(), SealError::Damaged, "cut at {at}");
        }
    }

    #[test]
    fn the_same_secret_never_looks_the_same_and_is_not_in_what_is_stored() {
        let keys = keys(&[1]);
        let (row, user) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let secret = SecretString::from("a secret that is long enough to be found");
        let sealed: std::collections::HashSet<Vec<u8>> =
            (0..1_000).map(|_| keys.seal(row, user, &secret).unwrap().bytes).collect();
        assert_eq!(sealed.len(), 1_000);
        let nonces: std::collections::HashSet<&[u8]> = sealed.iter().map(|b| &b[..NONCE_LEN]).collect();
        assert_eq!(nonces.len(), 1_000);
        assert!(sealed.iter().all(|b| !b.windows(6).any(|w| w == b"secret")));
    }

    #[test]
    fn the_first_key_encrypts_and_every_key_decrypts() {
        let (old, both, new) = (keys(&[1]), keys(&[2, 1]), keys(&[2]));
        let (row, user, secret) = (Uuid::from_u128(1), Uuid::from_u128(2), SecretString::from("s"));
        let (by_old, by_both) =
            (old.seal(row, user, &secret).unwrap(), both.seal(row, user, &secret).unwrap());
        assert_eq!(by_both.key_id, new.current());
        assert_ne!(by_old.key_id, by_both.key_id);
        for sealed in [&by_old, &by_both] {
            assert_eq!(both.open(row, user, sealed).unwrap().expose_secret(), "s");
        }
        assert!(new.open(row, user, &by_both).is_ok());
        let unknown = new.open(row, user, &by_old).unwrap_err();
        assert_eq!(unknown, SealError::UnknownKey(old.current().to_owned()));
        assert_eq!(both.ids(), [new.current().to_owned(), old.current().to_owned()]);
    }

    #[test]
    fn the_formats_of_version_1_stay_readable() {
        // Made once with this code: what is stored must open in every later release.
        let keys = keys(&[7]);
        let bytes = (0..KNOWN.len()).step_by(2).map(|i| u8::from_str_radix(&KNOWN[i..i + 2], 16).unwrap());
        let sealed = Sealed { key_id: KNOWN_KEY.to_owned(), bytes: bytes.collect() };
        let opened = keys.open(Uuid::from_u128(1), Uuid::from_u128(2), &sealed).unwrap();
        assert_eq!(opened.expose_secret(), "sk-of-version-1");
    }

    const KNOWN_KEY: &str = "22494c7dfe84ab7a";
    const KNOWN: &str =
        "8efb1fd67ee51da5b3ccc137e23c0676042dc195885ddd5325524c9961e8f4b56e2012935b37a24e37f91d";
}
