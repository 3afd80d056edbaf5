//! What holds for every credential anybody could send: no panic, and nothing is accepted that we did not issue.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use config::{ApiConfig, AuthConfig, MapVars};
use proptest::prelude::*;
use runtime::Clock;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ApiKeySecret, Keyring, RefreshSecret, gate::presented};

/// The development keys and a clock that stands still.
fn auth() -> AuthConfig {
    let vars = MapVars::from([
        ("DATABASE_URL", "postgres://u:p@localhost/db"),
        ("REDIS_URL", "redis://localhost"),
        ("ENGINE_URL", "http://localhost:9000"),
    ]);
    ApiConfig::from_vars(&vars).unwrap().auth
}

fn keyring() -> Keyring {
    runtime::install_crypto_provider();
    Keyring::from_config(&auth(), Clock::system()).unwrap()
}

fn genuine(keyring: &Keyring) -> String {
    keyring.sign(Uuid::now_v7(), Uuid::now_v7(), "user").unwrap().token
}

/// A token of these parts, signed with our own key.
fn signed(header: &Value, claims: &Value) -> String {
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(auth().signing_key.seed()).unwrap();
    let text = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
    format!("{text}.{}", B64.encode(pair.sign(text.as_bytes())))
}

fn parts(token: &str) -> (Value, Value) {
    let mut parts =
        token.split('.').map(|part| serde_json::from_slice(&B64.decode(part).unwrap_or_default()));
    (parts.next().unwrap().unwrap(), parts.next().unwrap().unwrap())
}

/// One change of a text.
#[derive(Debug, Clone)]
enum Change {
    Replace(usize, char),
    Insert(usize, char),
    Remove(usize),
    Cut(usize),
    Double(usize),
    Swap(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>().prop_map(|i| i.index(10_000));
    // Mostly characters that could stand there.
    let character =
        prop_oneof![8 => "[A-Za-z0-9_.=-]", 1 => "\\PC", 1 => any::<char>().prop_map(String::from)];
    (at, character, 0..6).prop_map(|(at, text, kind)| {
        let character = text.chars().next().unwrap_or('A');
        match kind {
            0 => Change::Replace(at, character),
            1 => Change::Insert(at, character),
            2 => Change::Remove(at),
            3 => Change::Cut(at),
            4 => Change::Double(at),
            _ => Change::Swap(at),
        }
    })
}

impl Change {
    fn apply(&self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let length = chars.len();
        match *self {
            Self::Replace(at, new) => chars[at % length] = new,
            Self::Insert(at, new) => chars.insert(at % (length + 1), new),
            Self::Remove(at) => drop(chars.remove(at % length)),
            Self::Cut(at) => chars.truncate(at % length),
            Self::Double(at) => chars.insert(at % length, chars[at % length]),
            Self::Swap(at) => chars.swap(at % length, (at + 1) % length),
        }
        chars.into_iter().collect()
    }
}

/// Any JSON value that could stand in a claim.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        (-10_000_i64..10_000).prop_map(|d| Value::from(Clock::system().now().timestamp() + d)),
        "\\PC{0,40}".prop_map(Value::from),
        prop::collection::vec("[a-z]{0,8}", 0..3).prop_map(Value::from),
        "[a-z]{0,8}".prop_map(|key| json!({ key: 1 })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_is_an_access_token(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "[A-Za-z0-9_.-]{0,300}",
        blobs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5),
    ) {
        let keyring = keyring();
        let encoded = blobs.iter().map(|blob| B64.encode(blob)).collect::<Vec<_>>().join(".");
        for token in [&*String::from_utf8_lossy(&bytes), &text, &encoded] {
            prop_assert!(keyring.verify(token).is_err(), "{token}");
        }
    }

    #[test]
    fn no_changed_access_token_is_accepted(changes in prop::collection::vec(change(), 1..4)) {
        let keyring = keyring();
        let token = genuine(&keyring);
        let changed = changes.iter().fold(token.clone(), |token, change| {
            if token.is_empty() { token } else { change.apply(&token) }
        });
        // It is in the cache of verified tokens, which must not make a difference.
        prop_assert!(keyring.verify(&token).is_ok());
        prop_assert_eq!(keyring.verify(&changed).is_ok(), changed == token, "{}", changed);
    }

    /// With our own signature: what is in it must be right all the same.
    #[test]
    fn a_signed_token_is_accepted_only_with_our_header(
        name in prop_oneof![Just("alg"), Just("typ"), Just("kid"), Just("crit"), Just("jku"), Just("jwk"), Just("x5u"), Just("cty")],
        new in prop::option::of(value()),
    ) {
        let keyring = keyring();
        let (mut header, claims) = parts(&genuine(&keyring));
        let before = header.clone();
        match new {
            Some(new) => header[name] = new,
            None => { header.as_object_mut().unwrap().remove(name); }
        }
        prop_assert_eq!(keyring.verify(&signed(&header, &claims)).is_ok(), header == before, "{}", header);
    }

    #[test]
    fn a_signed_token_is_accepted_only_with_claims_in_bounds(
        name in prop_oneof!["iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp", "scope", "[a-z]{1,5}"],
        new in prop::option::of(value()),
    ) {
        let (keyring, auth) = (keyring(), auth());
        let (header, mut claims) = parts(&genuine(&keyring));
        match new {
            Some(new) => claims[name.as_str()] = new,
            None => { claims.as_object_mut().unwrap().remove(&name); }
        }
        if let Ok(accepted) = keyring.verify(&signed(&header, &claims)) {
            let now = Clock::system().now().timestamp();
            prop_assert_eq!((&accepted.iss, &accepted.aud), (&auth.issuer, &auth.audience));
            prop_assert!(accepted.exp >= now - 6 && accepted.nbf <= now + 6 && accepted.iat <= now + 6, "{}", claims);
            prop_assert!(accepted.exp - accepted.iat <= 3_600, "{}", claims);
            prop_assert_eq!(serde_json::to_value(&accepted).unwrap(), claims);
        }
    }

    #[test]
    fn an_api_key_survives_its_text_and_no_change_of_it(seed in any::<u64>(), change in change()) {
        let key = ApiKeySecret::from_seed(&seed.to_string());
        let parsed = ApiKeySecret::parse(&key.text()).unwrap();
        prop_assert_eq!((parsed.public_id(), parsed.hash()), (key.public_id(), key.hash()));
        let changed = change.apply(&key.text());
        prop_assert_eq!(ApiKeySecret::parse(&changed).is_some(), changed == key.text(), "{}", changed);
    }

    #[test]
    fn no_text_is_an_api_key(text in "\\PC{0,120}", hex in "[0-9a-f]{16}_[0-9a-f]{72}") {
        prop_assert!(ApiKeySecret::parse(&text).is_none());
        // Well-formed but for the checksum; one in four thousand million fits by chance.
        let key = format!("blst_{hex}");
        prop_assert!(ApiKeySecret::parse(&key).is_none());
    }

    #[test]
    fn a_refresh_token_survives_its_text_and_no_change_finds_the_same(change in change()) {
        let token = RefreshSecret::generate().unwrap();
        prop_assert_eq!(RefreshSecret::parse(&token.text()).unwrap().hash(), token.hash());
        let changed = change.apply(&token.text());
        if changed != token.text() && let Some(other) = RefreshSecret::parse(&changed) {
            prop_assert_ne!(other.hash(), token.hash());
        }
    }

    /// One header with one credential, or nothing.
    #[test]
    fn a_request_presents_one_credential_or_none(
        headers in prop::collection::vec((any::<bool>(), prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            "(?i:bearer|basic|)[ \t]{0,3}(blst_)?[!-~]{0,20}[ ]{0,2}".prop_map(String::into_bytes),
        ]), 0..4),
    ) {
        let mut map = HeaderMap::new();
        for (bearer, bytes) in &headers {
            let name = if *bearer { header::AUTHORIZATION } else { HeaderName::from_static("x-api-key") };
            if let Ok(value) = HeaderValue::from_bytes(bytes) {
                map.append(name, value);
            }
        }
        match presented(&map) {
            Ok(credential) => {
                prop_assert_eq!(map.len(), 1);
                prop_assert!(!credential.is_empty() && credential.trim() == credential);
                let sent = map.values().next().unwrap().to_str().unwrap();
                let before = sent.trim_end().strip_suffix(credential).unwrap().trim();
                let by_key = map.contains_key("x-api-key");
                prop_assert!(if by_key { before.is_empty() } else { before.eq_ignore_ascii_case("bearer") }, "{}", sent);
                prop_assert!(!by_key || ApiKeySecret::looks_like(credential));
            }
            Err(error) => prop_assert_eq!(error.status(), 401),
        }
    }
}
