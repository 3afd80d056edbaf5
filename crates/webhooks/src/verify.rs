//! Which sender signs how, and what can be wrong with a signature.

use chrono::{DateTime, TimeDelta, Utc};
use http::HeaderMap;
use secrecy::SecretString;

use crate::{standard, stripe};

/// How old, or how far ahead, a signed timestamp may be. Both specifications name five minutes.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Why a request is not taken for the sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A header is not there.
    #[error("the header `{0}` is missing")]
    Missing(&'static str),
    /// A header, or the body where the id should be, cannot be read.
    #[error("`{0}` cannot be read")]
    Malformed(&'static str),
    /// Signed too long ago, or too far ahead: a replay, or a wrong clock.
    #[error("the timestamp is more than five minutes away from our time")]
    Stale,
    /// No signature fits any of the secrets.
    #[error("no signature fits")]
    Mismatch,
}

/// Checks the requests of one sender. Several secrets while they are rotated.
#[derive(Debug)]
pub enum Verifier {
    /// By the specification of Standard Webhooks.
    Standard(Vec<standard::Secret>),
    /// As Stripe does it.
    Stripe(Vec<SecretString>),
}

impl Verifier {
    /// Whether the sender signed this very body, just now; answers with the sender's id of the event, which stays the same
    /// when it is sent again.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<String, VerifyError> {
        match self {
            Self::Standard(secrets) => standard::verify(secrets, headers, body, now),
            Self::Stripe(secrets) => stripe::verify(secrets, headers, body, now),
        }
    }
}

/// The one header of this name, as text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, VerifyError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(VerifyError::Missing(name))?;
    match value.to_str() {
        Ok(text) if values.next().is_none() => Ok(text),
        _ => Err(VerifyError::Malformed(name)),
    }
}

/// A timestamp in Unix seconds, if it is about now.
pub(crate) fn timestamp(text: &str, name: &'static str, now: DateTime<Utc>) -> Result<i64, VerifyError> {
    // No sign, no blank: what was signed is this text, and one number should have one text.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let seconds: i64 = text.parse().ok().filter(|_| digits).ok_or(VerifyError::Malformed(name))?;
    let at = DateTime::from_timestamp(seconds, 0).ok_or(VerifyError::Malformed(name))?;
    if (now - at).abs() > TOLERANCE { Err(VerifyError::Stale) } else { Ok(seconds) }
}

/// Any of the signatures is any of the MACs. Each pair is compared in constant time.
pub(crate) fn any_equal(macs: &[aws_lc_rs::hmac::Tag], signatures: &[Vec<u8>]) -> bool {
    macs.iter().any(|mac| {
        signatures.iter().any(|signature| {
            aws_lc_rs::constant_time::verify_slices_are_equal(mac.as_ref(), signature).is_ok()
        })
    })
}
