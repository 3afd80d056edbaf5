//! Credentials of other systems that users store.

use std::collections::BTreeMap;

use url::Url;

use super::http_url;
use crate::{EncryptionKey, Problems, Vars, reader::Reader};

/// Credentials of other systems that users store.
#[derive(Debug, Clone)]
pub struct CredentialsConfig {
    /// The first one encrypts, all of them decrypt; at least one.
    pub keys: Vec<EncryptionKey>,
    /// The systems by name, each with the base URL of its OpenAI-compatible API, without a trailing slash.
    pub providers: BTreeMap<String, Url>,
}

impl CredentialsConfig {
    /// For `ballast credentials`, which needs nothing else of a role's settings.
    pub fn from_vars(vars: &impl Vars) -> Result<Self, Problems> {
        let mut r = Reader::new(vars);
        let config = Self::read(&mut r);
        r.finish(config)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let keys = r.with("CHANNEL_ENCRYPTION_KEY", keys);
        let providers = r.list("CREDENTIAL_PROVIDERS", provider);
        let providers: Option<BTreeMap<_, _>> = match providers {
            Some(list) => {
                let (count, map) = (list.len(), BTreeMap::from_iter(list));
                if map.len() < count {
                    r.problem("CREDENTIAL_PROVIDERS", "every provider needs a name of its own");
                }
                Some(map)
            }
            None => None,
        };
        Some(Self { keys: keys?, providers: providers? })
    }
}

fn keys(text: &str) -> Result<Vec<EncryptionKey>, String> {
    let keys: Vec<EncryptionKey> = text.split(',').map(|t| t.trim().parse()).collect::<Result<_, _>>()?;
    let distinct: std::collections::BTreeSet<_> = keys.iter().map(EncryptionKey::bytes).collect();
    if distinct.len() < keys.len() {
        return Err("the same key stands there twice".to_owned());
    }
    Ok(keys)
}

fn provider(text: &str) -> Result<(String, Url), String> {
    const SHAPE: &str =
        "expected NAME=URL such as openai=https://api.openai.com/v1; names take 1 to 32 of a-z 0-9 -";
    let (name, url) = text.split_once('=').ok_or(SHAPE)?;
    let fine = (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fine { Ok((name.to_owned(), http_url(url)?)) } else { Err(SHAPE.to_owned()) }
}
