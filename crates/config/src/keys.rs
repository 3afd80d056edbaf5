//! Key material of access tokens, as one-line strings that `ballast keygen` prints.

use std::str::FromStr;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretBox};

/// The key that signs access tokens: `KID:SEED`, the seed being 32 bytes of Ed25519 (RFC 8032) in base64url.
pub struct SigningKey {
    /// The key id that goes into the token's header.
    pub kid: String,
    seed: SecretBox<[u8; 32]>,
}

impl SigningKey {
    /// The Ed25519 seed.
    pub fn seed(&self) -> &[u8; 32] {
        self.seed.expose_secret()
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        Self { kid: self.kid.clone(), seed: SecretBox::new(Box::new(*self.seed())) }
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// A public key that is accepted beside the signing key, before and after a rotation: `KID:PUBLIC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyKey {
    /// The key id.
    pub kid: String,
    /// The Ed25519 public key.
    pub public: [u8; 32],
}

fn split(s: &str) -> Result<(String, [u8; 32]), String> {
    const SHAPE: &str = "expected KID:KEY with 32 bytes in base64url; `ballast keygen` prints one";
    let (kid, key) = s.split_once(':').ok_or(SHAPE)?;
    let kid_ok = (1..=64).contains(&kid.len())
        && kid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !kid_ok {
        return Err("the key id before the colon takes 1 to 64 of A-Z a-z 0-9 _ -".to_owned());
    }
    let bytes = URL_SAFE_NO_PAD.decode(key.trim_end_matches('=')).map_err(|_| SHAPE)?;
    let key = <[u8; 32]>::try_from(bytes).map_err(|_| SHAPE)?;
    if key.iter().all(|&b| b == key[0]) {
        return Err("the key is one byte repeated; `ballast keygen` makes a random one".to_owned());
    }
    Ok((kid.to_owned(), key))
}

impl FromStr for SigningKey {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (kid, seed) = split(s)?;
        Ok(Self { kid, seed: SecretBox::new(Box::new(seed)) })
    }
}

impl FromStr for VerifyKey {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (kid, public) = split(s)?;
        Ok(Self { kid, public })
    }
}
