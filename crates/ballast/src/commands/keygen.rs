//! `ballast keygen`.

use std::process::ExitCode;

use ::api::auth::hex;
use anyhow::Context as _;
use aws_lc_rs::{
    rand,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::ValueEnum as _;
use config::{EnvVars, SigningKey, Vars as _};

use super::{say, tool};

/// Print fresh secrets for a deployment: NAME=value, one line each, ready to paste.
///
/// Give every environment secrets of its own. Nothing is stored: keep the output in your platform's variables.
/// How each of them is exchanged without an interruption: docs/runbooks/key-rotation.md.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Keygen {
    /// Make this one only (repeatable)
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Secret>,
    /// The signing key's id: 1 to 64 of A-Z a-z 0-9 _ -  [default: random]
    #[arg(long, value_parser = kid)]
    kid: Option<String>,
    /// Make nothing: print the public half of the JWT_SIGNING_KEY in the environment, as JWT_VERIFY_KEYS
    #[arg(long, conflicts_with_all = ["only", "kid"])]
    public_half: bool,
}

const EXAMPLES: &str = "\
Examples:
  ballast keygen >> .env.production                     all secrets
  ballast keygen --only CHANNEL_ENCRYPTION_KEY          one of them
  ballast keygen --only JWT_SIGNING_KEY --kid k2026q4   the next signing key, with a name
  JWT_SIGNING_KEY=... ballast keygen --public-half      what others verify its tokens with

The public half of a new signing key is printed to standard error.";

/// The secrets that are ours to make. Others, such as ENGINE_API_KEY, come from those who issue them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Secret {
    /// Signs access tokens
    #[value(name = "JWT_SIGNING_KEY")]
    JwtSigningKey,
    /// Derives refresh tokens and pseudonyms
    #[value(name = "SERVER_SECRET")]
    ServerKey,
    /// Encrypts stored credentials
    #[value(name = "CHANNEL_ENCRYPTION_KEY")]
    ChannelEncryptionKey,
    /// Opens /metrics
    #[value(name = "METRICS_TOKEN")]
    MetricsToken,
}

fn kid(text: &str) -> Result<String, String> {
    let fine = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fine { Ok(text.to_owned()) } else { Err("takes 1 to 64 of A-Z a-z 0-9 _ -".to_owned()) }
}

impl Keygen {
    pub(crate) fn run(self) -> ExitCode {
        tool(async || {
            if self.public_half {
                let key = EnvVars.get("JWT_SIGNING_KEY").context("JWT_SIGNING_KEY is not set")?;
                let key: SigningKey = key.parse().map_err(|e| anyhow::anyhow!("JWT_SIGNING_KEY: {e}"))?;
                say(format_args!("JWT_VERIFY_KEYS={}", public_half(&key.kid, key.seed())?));
                return Ok(ExitCode::SUCCESS);
            }
            let all = if self.only.is_empty() { Secret::value_variants() } else { &self.only };
            for secret in all {
                let name = secret.to_possible_value().context("every secret has a name")?;
                say(format_args!("{}={}", name.get_name(), self.make(*secret)?));
            }
            anyhow::Ok(ExitCode::SUCCESS)
        })
    }

    #[expect(clippy::print_stderr, reason = "standard output is for pasting")]
    fn make(&self, secret: Secret) -> anyhow::Result<String> {
        match secret {
            Secret::JwtSigningKey => {
                let kid = match &self.kid {
                    Some(kid) => kid.clone(),
                    None => format!("k{}", hex(&random::<4>()?)),
                };
                let seed = random::<32>()?;
                eprintln!(
                    "The public half of {kid}, for JWT_VERIFY_KEYS while keys are rotated: {}",
                    public_half(&kid, &seed)?
                );
                Ok(format!("{kid}:{}", URL_SAFE_NO_PAD.encode(seed)))
            }
            Secret::ServerKey | Secret::ChannelEncryptionKey => Ok(hex(&random::<32>()?)),
            Secret::MetricsToken => Ok(hex(&random::<24>()?)),
        }
    }
}

fn public_half(kid: &str, seed: &[u8; 32]) -> anyhow::Result<String> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok().context("the seed makes no key")?;
    Ok(format!("{kid}:{}", URL_SAFE_NO_PAD.encode(pair.public_key().as_ref())))
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok().context("the system gives no randomness")?;
    Ok(bytes)
}
