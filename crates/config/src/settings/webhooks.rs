//! Webhooks that come in.

use std::collections::BTreeMap;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use secrecy::SecretString;

use crate::reader::Reader;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who may send webhooks, and how they sign. Nobody, unless configured.
#[derive(Debug, Clone, Default)]
pub struct WebhooksConfig {
    /// Stripe's signing secrets, as text; several while they are rotated.
    pub stripe: Vec<SecretString>,
    /// Senders of Standard Webhooks by name, each with its secrets as `whsec_BASE64`.
    pub senders: BTreeMap<String, Vec<SecretString>>,
}

impl WebhooksConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let stripe = r.list("STRIPE_WEBHOOK_SECRET", |text| {
            let fine =
                text.starts_with("whsec_") && text.len() >= 16 && text.bytes().all(|b| b.is_ascii_graphic());
            if fine { Ok(SecretString::from(text)) } else { Err("expected whsec_...".to_owned()) }
        });
        let pairs = r.list("WEBHOOK_SECRETS", sender);
        let mut senders = BTreeMap::<_, Vec<_>>::new();
        for (name, secret) in pairs? {
            senders.entry(name).or_default().push(secret);
        }
        Some(Self { stripe: stripe?, senders })
    }
}

fn sender(text: &str) -> Result<(String, SecretString), String> {
    const SHAPE: &str = "expected NAME=whsec_BASE64 with 24 to 64 bytes; names take 1 to 32 of a-z 0-9 -";
    let (name, secret) = text.split_once('=').ok_or(SHAPE)?;
    let fine = (1..=32).contains(&name.len())
        && name != "stripe"
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let bytes = secret.strip_prefix("whsec_").and_then(|text| BASE64.decode(text).ok());
    if fine && bytes.is_some_and(|bytes| (24..=64).contains(&bytes.len())) {
        Ok((name.to_owned(), SecretString::from(secret)))
    } else {
        Err(SHAPE.to_owned())
    }
}
