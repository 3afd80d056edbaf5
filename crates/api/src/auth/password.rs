//! Passwords: argon2id with the OWASP parameters (19 MiB, 2 passes, 1 lane), a few at a time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use argon2::{
    Algorithm, Argon2, Block, Params, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};
use aws_lc_rs::rand;
use runtime::{Counted, Lifecycle};
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization as _;

use super::guessable::is_guessable;
use crate::{Error, Result};

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// Bytes of salt and of the hash (RFC 9106, section 3.1).
const SALT: usize = 16;
const HASH: usize = 32;
/// Characters, after composition.
const LENGTH: std::ops::RangeInclusive<usize> = 8..=128;
const WRONG_LENGTH: &str = "must have 8 to 128 characters";
const TOO_COMMON: &str = "is one of the first that are guessed: choose one that is not in common use and not made of your address or of this service's name, such as four random words";
/// How long a request waits for its turn: with all that comes before, who gets none is told so within two and a half seconds.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// What one hashing works in.
type Memory = Vec<Block>;

/// What came of comparing a password.
#[derive(Debug, Default)]
pub struct Compared {
    /// It is the right one.
    pub matches: bool,
    /// The right one, hashed anew: the stored hash is of weaker parameters than ours.
    pub renewed: Option<String>,
}

/// Hashes and verifies, on the blocking pool, a bounded number at a time: each takes 19 MiB and a core.
#[derive(Debug, Clone)]
pub struct Passwords {
    turns: Arc<Semaphore>,
    /// The working memory of past hashings, at most one for each turn. Given back to the allocator it would stay in the arena
    /// of its thread, and there are many threads: 200 logins then leave a process of 300 MiB behind, instead of 40.
    memories: Arc<Mutex<Vec<Memory>>>,
    lifecycle: Lifecycle,
    /// What an unknown user's password is compared with, so that it takes as long.
    dummy: Arc<str>,
}

impl Passwords {
    /// At most `concurrency` at a time.
    pub fn new(concurrency: usize, lifecycle: Lifecycle) -> anyhow::Result<Self> {
        let dummy = hash_now("nobody has this password")?.into();
        Ok(Self { turns: Arc::new(Semaphore::new(concurrency)), memories: Arc::default(), lifecycle, dummy })
    }

    /// Checks a password that somebody chooses by the rules of NIST SP 800-63B, section 5.1.1.2: 8 to 128 characters, none of
    /// the first guesses for the account with this (normalised) address, no other demands; NFC.
    pub fn normalize(field: &'static str, password: &str, email: &str) -> Result<String> {
        let normalized: String = password.nfc().collect();
        if !LENGTH.contains(&normalized.chars().count()) {
            return Err(Error::invalid(field, WRONG_LENGTH));
        }
        refuse_nul(field, &normalized)?;
        if is_guessable(&normalized, email) {
            return Err(Error::invalid(field, TOO_COMMON).with_code("password_too_common"));
        }
        Ok(normalized)
    }

    /// Hashes a password that was normalised before.
    pub async fn hash(&self, password: String) -> Result<String> {
        self.in_turn(move |memory| hash_in(memory, &password)).await?.map_err(Error::internal)
    }

    /// Compares a password with a hash, or with a dummy when there is no user: both take as long. What nobody can have is
    /// refused unhashed.
    pub async fn verify(
        &self,
        field: &'static str,
        password: &str,
        hash: Option<String>,
    ) -> Result<Compared> {
        let password: String = password.nfc().collect();
        if password.chars().count() > *LENGTH.end() {
            return Err(Error::invalid(field, WRONG_LENGTH));
        }
        refuse_nul(field, &password)?;
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.dummy.to_string());
        let compared = self
            .in_turn(move |memory| compare(memory, &password, &hash))
            .await?
            .map_err(|e| Error::internal(e.context("a stored hash is damaged")))?;
        Ok(if known { compared } else { Compared::default() })
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T> {
        let turn = tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            metrics::counter!("password_hashings_refused_total").increment(1);
            return Err(Error::unavailable("busy", "Too many logins at once.", Duration::from_secs(2)));
        };
        // The turn goes along: a client that leaves must not make room while its hashing still runs.
        let memories = self.memories.clone();
        let done = self.lifecycle.spawn_blocking(move || {
            let memories = || memories.lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = memories().pop().unwrap_or_default();
            let running = Counted::in_gauge(metrics::gauge!("password_hashings_running"));
            let result = work(&mut memory);
            drop(running);
            memories().push(memory);
            drop(turn);
            result
        });
        done.await.map_err(Error::internal)
    }
}

fn refuse_nul(field: &'static str, password: &str) -> Result<()> {
    if password.contains('\0') {
        return Err(Error::invalid(field, "must not contain NUL"));
    }
    Ok(())
}

fn params() -> Params {
    Params::new(MEMORY_KIB, PASSES, 1, Some(HASH)).expect("the parameters are in range")
}

/// Hashes without waiting for a turn; for the command line.
pub fn hash_now(password: &str) -> anyhow::Result<String> {
    hash_in(&mut Memory::new(), password)
}

fn hash_in(memory: &mut Memory, password: &str) -> anyhow::Result<String> {
    let mut salt = [0; SALT];
    rand::fill(&mut salt).map_err(|_| anyhow::anyhow!("the system gives no randomness"))?;
    let (algorithm, version, params) = (Algorithm::Argon2id, Version::V0x13, params());
    let hash = compute(memory, algorithm, version, &params, password, &salt)?;
    let phc = PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: ParamsString::try_from(&params)?,
        salt: Some(Salt::new(&salt)?),
        hash: Some(hash),
    };
    Ok(phc.to_string())
}

/// Compares. Where the stored hash is weaker than ours the right password is hashed anew, and a wrong one costs what it costs
/// everywhere.
fn compare(memory: &mut Memory, password: &str, hash: &str) -> anyhow::Result<Compared> {
    let matches = is_password_of(memory, password, hash)?;
    let phc = PasswordHash::new(hash)?;
    let mut renewed = None;
    if is_weaker(&phc)? {
        if matches {
            renewed = Some(hash_in(memory, password)?);
        } else {
            make_up_for(memory, password, &Params::try_from(&phc)?)?;
        }
    }
    Ok(Compared { matches, renewed })
}

/// Does the work that weaker parameters save: a refusal that comes too soon tells that there is such an account. What a hashing
/// costs is its memory times its passes.
fn make_up_for(memory: &mut Memory, password: &str, weaker: &Params) -> anyhow::Result<()> {
    let saved = (MEMORY_KIB * PASSES).saturating_sub(weaker.m_cost().saturating_mul(weaker.t_cost()));
    let kib = saved / PASSES;
    if kib >= Params::MIN_M_COST {
        let params = Params::new(kib, PASSES, 1, Some(HASH))?;
        compute(memory, Algorithm::Argon2id, Version::V0x13, &params, password, &[0; SALT])?;
    }
    Ok(())
}

fn is_weaker(hash: &PasswordHash) -> anyhow::Result<bool> {
    let params = Params::try_from(hash)?;
    let current =
        Algorithm::Argon2id.ident() == hash.algorithm && hash.version == Some(Version::V0x13.into());
    Ok(!current || params.m_cost() < MEMORY_KIB || params.t_cost() < PASSES)
}

/// Compares with a hash in the PHC format, with the parameters that stand there.
fn is_password_of(memory: &mut Memory, password: &str, hash: &str) -> anyhow::Result<bool> {
    let phc = PasswordHash::new(hash)?;
    let algorithm = Algorithm::try_from(phc.algorithm.as_str())?;
    let version = phc.version.map_or(Ok(Version::V0x13), Version::try_from)?;
    let salt = phc.salt.context("it has no salt")?;
    let found = compute(memory, algorithm, version, &Params::try_from(&phc)?, password, &salt)?;
    // Outputs are compared in constant time.
    Ok(phc.hash.context("it has no hash")? == found)
}

fn compute(
    memory: &mut Memory,
    algorithm: Algorithm,
    version: Version,
    params: &Params,
    password: &str,
    salt: &[u8],
) -> anyhow::Result<Output> {
    let blocks = params.block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::new());
    }
    let mut out = [0; Output::MAX_LENGTH];
    let out = &mut out[..params.output_len().unwrap_or(HASH)];
    Argon2::new(algorithm, version, params.clone()).hash_password_into_with_memory(
        password.as_bytes(),
        salt,
        out,
        &mut memory[..blocks],
    )?;
    Ok(Output::new(out)?)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests spawn their clients")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use config::ShutdownConfig;

    use super::*;

    /// Case A10.
    #[tokio::test(flavor = "multi_thread")]
    async fn clients_that_leave_make_no_room_for_more_hashings_than_there_are_turns() {
        let times = ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(1) };
        let passwords = Passwords::new(3, Lifecycle::new(times)).unwrap();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..60)
            .map(|_| {
                let (passwords, running, most) = (passwords.clone(), running.clone(), most.clone());
                tokio::spawn(async move {
                    let work = move |_: &mut Memory| {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(10));
                        running.fetch_sub(1, Ordering::SeqCst);
                    };
                    passwords.in_turn(work).await
                })
            })
            .collect();
        let (leaving, staying): (Vec<_>, Vec<_>) =
            clients.into_iter().enumerate().partition(|(n, _)| n % 3 != 0);
        for (_, client) in leaving {
            // One after the other, so that some are hashed just now.
            tokio::time::sleep(Duration::from_millis(2)).await;
            client.abort();
        }
        for (_, client) in staying {
            client.await.unwrap().unwrap();
        }
        // Those whose client left run to their end too.
        let all = tokio::time::timeout(Duration::from_secs(10), passwords.turns.acquire_many(3)).await;
        let _all = all.expect("every turn is given back").unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert!(passwords.memories.lock().unwrap().len() <= 3, "and no more memory than turns");
    }

    #[test]
    fn hashes_of_other_parameters_are_compared_too_in_memory_that_was_used_before() {
        let mut memory = Memory::new();
        let ours = hash_in(&mut memory, "correct horse").unwrap();
        assert!(ours.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{ours}");
        // Made by the reference implementation: `echo -n password | argon2 somesalt -id -v 13 -k 256 -t 2 -p 1`.
        let smaller = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        for _ in 0..2 {
            assert!(is_password_of(&mut memory, "correct horse", &ours).unwrap());
            assert!(!is_password_of(&mut memory, "correct horsE", &ours).unwrap());
            assert!(is_password_of(&mut memory, "password", smaller).unwrap());
            assert!(!is_password_of(&mut memory, "Password", smaller).unwrap());
        }
        assert!(compare(&mut memory, "correct horse", &ours).unwrap().renewed.is_none(), "as good as new");
        assert!(compare(&mut memory, "Password", smaller).unwrap().renewed.is_none(), "not the right one");
        let renewed = compare(&mut memory, "password", smaller).unwrap().renewed.unwrap();
        assert!(renewed.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{renewed}");
        assert!(is_password_of(&mut memory, "password", &renewed).unwrap());
        let stronger = ours.replace("t=2", "t=3");
        assert!(!is_weaker(&PasswordHash::new(&stronger).unwrap()).unwrap(), "nobody is made weaker");
        assert_ne!(ours, hash_in(&mut memory, "correct horse").unwrap(), "a salt for each");
        for damaged in [
            "",
            "x",
            "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ",
            "$pbkdf2$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        ] {
            assert!(is_password_of(&mut memory, "password", damaged).is_err(), "{damaged}");
        }
    }
}
