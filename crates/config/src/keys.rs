//! Key material, as one-line strings that `ballast keygen` prints.

use std::str::FromStr;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
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

/// A key that encrypts what is stored: 32 random bytes, in hex or in base64 (either alphabet, padded or not).
pub struct EncryptionKey(SecretBox<[u8; 32]>);

impl EncryptionKey {
    /// The key itself.
    pub fn bytes(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }
}

impl Clone for EncryptionKey {
    fn clone(&self) -> Self {
        Self(SecretBox::new(Box::new(*self.bytes())))
    }
}

impl std::fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EncryptionKey")
    }
}

impl FromStr for EncryptionKey {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        const SHAPE: &str =
            "expected 32 random bytes as 64 hex digits or in base64; `ballast keygen` prints one";
        let bytes = from_hex(s)
            .or_else(|| {
                let standard = s.trim_end_matches('=').replace('-', "+").replace('_', "/");
                STANDARD_NO_PAD.decode(standard).ok()?.try_into().ok()
            })
            .ok_or(SHAPE)?;
        if bytes.iter().all(|&b| b == bytes[0]) {
            return Err("the key is one byte repeated; `ballast keygen` makes a random one".to_owned());
        }
        Ok(Self(SecretBox::new(Box::new(bytes))))
    }
}

fn from_hex(s: &str) -> Option<[u8; 32]> {
    if s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&s[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encryption_key_is_the_same_in_hex_and_in_every_base64() {
        let bytes: [u8; 32] = std::array::from_fn(|i| 0xf8 + (i % 8) as u8);
        let hex = "f8f9fafbfcfdfeff".repeat(4);
        let padded = base64::engine::general_purpose::STANDARD.encode(bytes);
        assert!(padded.contains('+') || padded.contains('/'), "{padded}");
        for text in [hex.clone(), hex.to_uppercase(), padded, URL_SAFE_NO_PAD.encode(bytes)] {
            assert_eq!(text.parse::<EncryptionKey>().unwrap().bytes(), &bytes, "{text}");
        }
        for bad in ["", "x", &hex[1..], &format!("{hex}00"), &hex.replace('f', "g"), &"00".repeat(32)] {
            assert!(bad.parse::<EncryptionKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_do_not_print_themselves() {
        let key: EncryptionKey = format!("{}aa", "0f".repeat(31)).parse().unwrap();
        assert_eq!(format!("{key:?}"), "EncryptionKey");
    }
}
