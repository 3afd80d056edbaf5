//! `ballast keygen`.

use std::process::ExitCode;

use ::api::auth::hex;
use anyhow::Context as _;
use aws_lc_rs::{
    rand,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{say, tool};

/// Print fresh secrets for a deployment, one line each, ready to paste.
///
/// Give every environment secrets of its own. Nothing is stored: keep the output in your platform's variables.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ballast keygen                  all secrets\n  ballast keygen --kid k2026q4    with a name for the signing key"
)]
pub(crate) struct Keygen {
    /// The signing key's id: 1 to 64 of A-Z a-z 0-9 _ -
    #[arg(long, value_parser = kid)]
    kid: Option<String>,
}

fn kid(text: &str) -> Result<String, String> {
    let fine = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if fine { Ok(text.to_owned()) } else { Err("takes 1 to 64 of A-Z a-z 0-9 _ -".to_owned()) }
}

impl Keygen {
    pub(crate) fn run(self) -> ExitCode {
        tool(async || {
            let kid = match self.kid {
                Some(kid) => kid,
                None => format!("k{}", hex(&random::<4>()?)),
            };
            let seed = random::<32>()?;
            let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok().context("the seed makes no key")?;
            let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
            say(format_args!("JWT_SIGNING_KEY={kid}:{}", URL_SAFE_NO_PAD.encode(seed)));
            say(format_args!("SERVER_SECRET={}", hex(&random::<32>()?)));
            say(format_args!("METRICS_TOKEN={}", hex(&random::<24>()?)));
            say(format_args!(
                "# The signing key's public half, for JWT_VERIFY_KEYS while keys are rotated: {kid}:{public}"
            ));
            anyhow::Ok(ExitCode::SUCCESS)
        })
    }
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).ok().context("the system gives no randomness")?;
    Ok(bytes)
}
