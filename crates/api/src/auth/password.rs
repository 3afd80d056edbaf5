//! Passwords: argon2id with the OWASP parameters (19 MiB, 2 passes, 1 lane), a few at a time.

use std::{sync::Arc, time::Duration};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use runtime::Lifecycle;
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization as _;

use crate::{Error, Result};

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Hashes and verifies, on the blocking pool, a bounded number at a time: each takes 19 MiB and a core.
#[derive(Debug, Clone)]
pub struct Passwords {
    turns: Arc<Semaphore>,
    lifecycle: Lifecycle,
    /// What an unknown user's password is compared with, so that it takes as long.
    dummy: Arc<str>,
}

impl Passwords {
    /// At most `concurrency` at a time.
    pub fn new(concurrency: usize, lifecycle: Lifecycle) -> anyhow::Result<Self> {
        let dummy = hash_now("nobody has this password")?.into();
        Ok(Self { turns: Arc::new(Semaphore::new(concurrency)), lifecycle, dummy })
    }

    /// Checks the rules of NIST SP 800-63B, section 5.1.1.2: 8 to 128 characters, no other demands; NFC.
    pub fn normalize(field: &'static str, password: &str) -> Result<String> {
        let normalized: String = password.nfc().collect();
        if !(8..=128).contains(&normalized.chars().count()) {
            return Err(Error::invalid(field, "must have 8 to 128 characters"));
        }
        if normalized.contains('\0') {
            return Err(Error::invalid(field, "must not contain NUL"));
        }
        Ok(normalized)
    }

    /// Hashes a password that was normalised before.
    pub async fn hash(&self, password: String) -> Result<String> {
        self.in_turn(move || hash_now(&password)).await?.map_err(Error::internal)
    }

    /// Compares a password with a hash, or with a dummy when there is no user: both take as long.
    pub async fn verify(&self, password: &str, hash: Option<String>) -> Result<bool> {
        let password: String = password.nfc().collect();
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.dummy.to_string());
        let matches = self
            .in_turn(move || {
                let parsed =
                    PasswordHash::new(&hash).map_err(|e| anyhow::anyhow!("a stored hash is damaged: {e}"))?;
                anyhow::Ok(argon2().verify_password(password.as_bytes(), &parsed).is_ok())
            })
            .await?
            .map_err(Error::internal)?;
        Ok(matches && known)
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let busy = || Error::unavailable("busy", "Too many logins at once.", Duration::from_secs(2));
        let turn =
            tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await.map_err(|_| busy())?;
        let turn = turn.map_err(|_| busy())?;
        // The turn goes along: a client that leaves must not make room while its hashing still runs.
        let done = self.lifecycle.spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        done.await.map_err(Error::internal)
    }
}

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).expect("the parameters are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Hashes without waiting for a turn; for the command line.
pub fn hash_now(password: &str) -> anyhow::Result<String> {
    let hash =
        argon2().hash_password(password.as_bytes()).map_err(|e| anyhow::anyhow!("hashing failed: {e}"))?;
    Ok(hash.to_string())
}
