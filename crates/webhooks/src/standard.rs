//! Signatures by the specification of Standard Webhooks.
//!
//! `webhook-signature` holds one or more `v1,BASE64`, separated by blanks: HMAC-SHA256 over `ID.TIMESTAMP.BODY`.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    hmac::{self, HMAC_SHA256},
    rand,
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use chrono::{DateTime, Utc};
use http::HeaderMap;
use secrecy::SecretString;

use crate::{
    VerifyError,
    verify::{any_equal, header, timestamp},
};

/// The header with the message's id.
pub const ID: &str = "webhook-id";
/// The header with the time of the attempt, in Unix seconds.
pub const TIMESTAMP: &str = "webhook-timestamp";
/// The header with the signatures.
pub const SIGNATURE: &str = "webhook-signature";

const PREFIX: &str = "whsec_";
/// Some senders leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A symmetric secret: 24 to 64 bytes, written `whsec_BASE64`.
#[derive(Clone)]
pub struct Secret(hmac::Key);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = BASE64.decode(text.strip_prefix(PREFIX).unwrap_or(text));
        match bytes {
            Ok(bytes) if (24..=64).contains(&bytes.len()) => Ok(Self(hmac::Key::new(HMAC_SHA256, &bytes))),
            _ => Err("expected whsec_ and 24 to 64 bytes in base64"),
        }
    }
}

impl Secret {
    /// A new random secret, as it is shown to whoever will verify with it.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<SecretString, aws_lc_rs::error::Unspecified> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes)?;
        Ok(SecretString::from(format!("{PREFIX}{}", STANDARD.encode(bytes))))
    }

    fn mac(&self, id: &str, timestamp: i64, body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        context.sign()
    }
}

/// The value of [`SIGNATURE`] for a message of ours.
pub fn sign(secret: &Secret, id: &str, timestamp: i64, body: &[u8]) -> String {
    format!("v1,{}", STANDARD.encode(secret.mac(id, timestamp, body)))
}

pub(crate) fn verify(
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<String, VerifyError> {
    let id = header(headers, ID)?;
    if !(1..=255).contains(&id.len()) {
        return Err(VerifyError::Malformed(ID));
    }
    let time = timestamp(header(headers, TIMESTAMP)?, TIMESTAMP, now)?;
    let signatures = header(headers, SIGNATURE)?.split(' ').filter_map(|s| s.strip_prefix("v1,"));
    let signatures: Vec<Vec<u8>> = signatures.filter_map(|s| BASE64.decode(s).ok()).collect();
    let macs: Vec<hmac::Tag> = secrets.iter().map(|secret| secret.mac(id, time, body)).collect();
    if any_equal(&macs, &signatures) { Ok(id.to_owned()) } else { Err(VerifyError::Mismatch) }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::Verifier;

    // The vector of the specification's reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const MESSAGE: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIME: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn verify_at(seconds: i64, signature: &str, id: &str, body: &[u8]) -> Result<String, VerifyError> {
        let mut headers = HeaderMap::new();
        headers.insert(ID, id.parse().unwrap());
        headers.insert(TIMESTAMP, TIME.to_string().parse().unwrap());
        headers.insert(SIGNATURE, signature.parse().unwrap());
        let other: Secret = format!("whsec_{}", STANDARD.encode([7; 32])).parse().unwrap();
        let verifier = Verifier::Standard(vec![other, SECRET.parse().unwrap()]);
        verifier.verify(&headers, body, DateTime::from_timestamp(seconds, 0).unwrap())
    }

    #[test]
    fn the_vector_of_the_specification_is_signed_and_verified() {
        let secret: Secret = SECRET.parse().unwrap();
        assert_eq!(sign(&secret, MESSAGE, TIME, BODY), SIGNED);
        assert_eq!(
            verify_at(TIME, SIGNED, MESSAGE, BODY),
            Ok(MESSAGE.to_owned()),
            "also as the second secret"
        );
        let bare: Secret = SECRET.strip_prefix("whsec_").unwrap().parse().unwrap();
        assert_eq!(sign(&bare, MESSAGE, TIME, BODY), SIGNED, "the prefix is no part of the key");
        for several in [format!("v1,bm9wZQ== {SIGNED}"), format!("v2,x v1a,y {SIGNED} v1,!")] {
            assert!(verify_at(TIME, &several, MESSAGE, BODY).is_ok(), "{several}");
        }
    }

    #[test]
    fn what_was_changed_or_signed_by_somebody_else_does_not_fit() {
        assert_eq!(verify_at(TIME, SIGNED, MESSAGE, br#"{"test": 2432232315}"#), Err(VerifyError::Mismatch));
        assert_eq!(verify_at(TIME, SIGNED, MESSAGE, b""), Err(VerifyError::Mismatch));
        assert_eq!(verify_at(TIME, SIGNED, "msg_2", BODY), Err(VerifyError::Mismatch));
        for nothing in [
            "v1,",
            "v1",
            "",
            SIGNED.trim_start_matches("v1,"),
            "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ] {
            assert_eq!(verify_at(TIME, nothing, MESSAGE, BODY), Err(VerifyError::Mismatch), "{nothing}");
        }
        assert_eq!(verify_at(TIME, SIGNED, &"x".repeat(256), BODY), Err(VerifyError::Malformed(ID)));
    }

    #[test]
    fn five_minutes_either_way_are_tolerated_and_no_second_more() {
        for (seconds, fine) in [(300, true), (-300, true), (301, false), (-301, false)] {
            let verified = verify_at(TIME + seconds, SIGNED, MESSAGE, BODY);
            assert_eq!(verified.is_ok(), fine, "{seconds}: {verified:?}");
        }
    }

    #[test]
    fn missing_doubled_and_unreadable_headers_are_told_apart() {
        let verifier = Verifier::Standard(vec![SECRET.parse().unwrap()]);
        let now = DateTime::from_timestamp(TIME, 0).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [(ID, MESSAGE), (TIMESTAMP, "1614265330"), (SIGNATURE, SIGNED)] {
            assert_eq!(verifier.verify(&headers, BODY, now), Err(VerifyError::Missing(name)));
            headers.insert(name, value.parse().unwrap());
        }
        assert!(verifier.verify(&headers, BODY, now).is_ok());
        for wrong in ["", " 1614265330", "+1614265330", "-1", "1614265330.0", "0x60", "99999999999999999999"]
        {
            headers.insert(TIMESTAMP, wrong.parse().unwrap());
            let verified = verifier.verify(&headers, BODY, now);
            assert_eq!(verified, Err(VerifyError::Malformed(TIMESTAMP)), "{wrong}");
        }
        headers.insert(TIMESTAMP, "1614265330".parse().unwrap());
        headers.append(ID, MESSAGE.parse().unwrap());
        assert_eq!(verifier.verify(&headers, BODY, now), Err(VerifyError::Malformed(ID)));
    }

    #[test]
    fn secrets_are_long_enough_random_and_do_not_print_themselves() {
        for weak in ["", "whsec_", "whsec_MfKQ", "whsec_!!!", &format!("whsec_{}", STANDARD.encode([1; 65]))]
        {
            assert!(weak.parse::<Secret>().is_err(), "{weak}");
        }
        let (one, two) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(one.expose_secret(), two.expose_secret());
        let secret: Secret = one.expose_secret().parse().unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
