//! Signatures as Stripe makes them.
//!
//! `Stripe-Signature` is `t=TIME,v1=HEX,...`: HMAC-SHA256 over `TIME.BODY`, with the secret's text as key. The event's id stands
//! in the body. <https://docs.stripe.com/webhooks?verify=verify-manually>

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use chrono::{DateTime, Utc};
use http::HeaderMap;
use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    VerifyError,
    verify::{any_equal, header, timestamp},
};

/// The header with time and signatures.
pub const SIGNATURE: &str = "stripe-signature";

pub(crate) fn verify(
    secrets: &[SecretString],
    headers: &HeaderMap,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<String, VerifyError> {
    let malformed = VerifyError::Malformed(SIGNATURE);
    let (mut time, mut signatures) = (None, Vec::new());
    for item in header(headers, SIGNATURE)?.split(',') {
        match item.trim().split_once('=').ok_or(malformed)? {
            ("t", text) if time.is_none() => time = Some(text),
            // Two times: which one would be signed?
            ("t", _) => return Err(malformed),
            ("v1", text) => signatures.extend(hex(text)),
            // Other schemes: v0 is for test events and fake.
            _ => {}
        }
    }
    let seconds = timestamp(time.ok_or(malformed)?, SIGNATURE, now)?;
    let macs: Vec<hmac::Tag> = secrets
        .iter()
        .map(|secret| {
            let key = hmac::Key::new(HMAC_SHA256, secret.expose_secret().as_bytes());
            let mut context = hmac::Context::with_key(&key);
            context.update(format!("{seconds}.").as_bytes());
            context.update(body);
            context.sign()
        })
        .collect();
    if !any_equal(&macs, &signatures) {
        return Err(VerifyError::Mismatch);
    }
    event_id(body).ok_or(VerifyError::Malformed("id"))
}

fn event_id(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Event {
        id: String,
    }
    let Event { id } = serde_json::from_slice(body).ok()?;
    let fine = (1..=255).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    fine.then_some(id)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verifier;

    // Secret and payload of the test suites of Stripe's own libraries; the signature was made with Python's hmac.
    const SECRET: &str = "whsec_test_secret";
    const TIME: i64 = 1_533_204_620;
    const BODY: &[u8] = b"{\n  \"id\": \"evt_test_webhook\",\n  \"object\": \"event\"\n}";
    const V1: &str = "b211a6d90b230f214d40f639a5547af1198a989ecb45d03e3db0ab7bdcfe15d6";

    fn verify_at(seconds: i64, signature: &str, body: &[u8]) -> Result<String, VerifyError> {
        let mut headers = HeaderMap::new();
        headers.insert(SIGNATURE, signature.parse().unwrap());
        let verifier = Verifier::Stripe(vec![SecretString::from("whsec_next"), SecretString::from(SECRET)]);
        verifier.verify(&headers, body, DateTime::from_timestamp(seconds, 0).unwrap())
    }

    #[test]
    fn stripes_signatures_are_verified_over_the_raw_body() {
        let id = Ok("evt_test_webhook".to_owned());
        assert_eq!(verify_at(TIME, &format!("t={TIME},v1={V1}"), BODY), id);
        let rotated = format!(
            "t={TIME},v1={},v1={V1},v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39",
            "0".repeat(64)
        );
        assert_eq!(verify_at(TIME, &rotated, BODY), id, "two secrets at Stripe's side");
        let compact = br#"{"id":"evt_test_webhook","object":"event"}"#;
        assert_eq!(verify_at(TIME, &format!("t={TIME},v1={V1}"), compact), Err(VerifyError::Mismatch));
    }

    #[test]
    fn another_scheme_time_or_signature_does_not_do() {
        for (header, error) in [
            (format!("t={TIME},v0={V1}"), VerifyError::Mismatch),
            (format!("t={TIME}"), VerifyError::Mismatch),
            (format!("t={TIME},v1={}", &V1[1..]), VerifyError::Mismatch),
            (format!("t={TIME},v1={}ü", &V1[2..]), VerifyError::Malformed(SIGNATURE)),
            (format!("t={},v1={V1}", TIME + 1), VerifyError::Mismatch),
            (format!("v1={V1}"), VerifyError::Malformed(SIGNATURE)),
            (format!("t={TIME},t={TIME},v1={V1}"), VerifyError::Malformed(SIGNATURE)),
            (format!("t=,v1={V1}"), VerifyError::Malformed(SIGNATURE)),
            ("nonsense".to_owned(), VerifyError::Malformed(SIGNATURE)),
            (String::new(), VerifyError::Malformed(SIGNATURE)),
        ] {
            assert_eq!(verify_at(TIME, &header, BODY), Err(error), "{header}");
        }
        let header = format!("t={TIME},v1={V1}");
        assert!(verify_at(TIME + 300, &header, BODY).is_ok());
        assert_eq!(verify_at(TIME + 301, &header, BODY), Err(VerifyError::Stale));
        assert_eq!(verify_at(TIME - 301, &header, BODY), Err(VerifyError::Stale));
    }

    #[test]
    fn a_signed_body_without_an_id_cannot_be_told_from_another() {
        let sign = |body: &[u8]| {
            let key = hmac::Key::new(HMAC_SHA256, SECRET.as_bytes());
            let mac = hmac::sign(&key, &[format!("{TIME}.").as_bytes(), body].concat());
            mac.as_ref().iter().fold(String::new(), |hex, b| hex + &format!("{b:02x}"))
        };
        for body in
            ["", "[]", "{}", r#"{"id":1}"#, r#"{"id":""}"#, r#"{"id":"a b"}"#, r#"{"id":"evt\u0000"}"#]
        {
            let header = format!("t={TIME},v1={}", sign(body.as_bytes()));
            assert_eq!(
                verify_at(TIME, &header, body.as_bytes()),
                Err(VerifyError::Malformed("id")),
                "{body}"
            );
        }
    }
}
