//! Refresh tokens: opaque, 256 bits, `rt_` and base64url; only their SHA-256 is stored.
//!
//! The child of a token is derived from it with HMAC-SHA-256 under the server's key. So a client that lost the answer to its
//! refresh, or two tabs that refresh at once, get the *same* child again, and nothing but hashes needs to be kept for that.

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac, rand,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};

const PREFIX: &str = "rt_";

/// A refresh token.
#[derive(Clone)]
pub struct RefreshSecret([u8; 32]);

impl RefreshSecret {
    /// A new random token: the first of a session.
    pub fn generate() -> anyhow::Result<Self> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
        Ok(Self(bytes))
    }

    /// Reads a token; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// The token that follows this one.
    #[must_use]
    pub fn child(&self, server_secret: &SecretString) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, server_secret.expose_secret().as_bytes());
        let mut context = hmac::Context::with_key(&key);
        context.update(b"refresh-token-child/v1");
        context.update(&self.0);
        Self(context.sign().as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes"))
    }

    /// What is stored.
    pub fn hash(&self) -> [u8; 32] {
        digest(&SHA256, &self.0).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// What the client gets.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_is_always_the_same_and_depends_on_parent_and_key() {
        let (one, other) = (SecretString::from("a"), SecretString::from("b"));
        let parent = RefreshSecret::generate().unwrap();
        assert_eq!(parent.child(&one).text(), parent.child(&one).text());
        assert_ne!(parent.child(&one).text(), parent.child(&other).text());
        assert_ne!(parent.child(&one).text(), parent.text());
        let parsed = RefreshSecret::parse(&parent.text()).unwrap();
        assert_eq!(parsed.hash(), parent.hash());
        for bad in ["", "rt_", "rt_AAAA", "xx_AAAA", &format!("{}A", parent.text())] {
            assert!(RefreshSecret::parse(bad).is_none(), "{bad}");
        }
    }
}
