//! When two requests are the same: their digests are.

use std::{borrow::Cow, fmt};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// With one of these, an answer is more than its text: the engine keeps or looks up something of its own.
const STATEFUL: [&str; 4] = ["store", "background", "conversation", "previous_response_id"];
/// Whole numbers above cannot be told apart when they are read.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The digest of a request: who may share its answer, how it is sent, and its body in canonical form, in which neither spaces nor
/// the order of fields nor the way a text is escaped make a difference. `None` when an answer to it must not be kept.
pub(super) fn of(circumstances: &[&[u8]], body: &[u8]) -> Option<Digest> {
    let mut hash = Context::new(&SHA256);
    for part in circumstances {
        text(&mut hash, part);
    }
    let mut body = serde_json::Deserializer::from_slice(body);
    Value { hash: &mut hash, depth: 0 }.deserialize(&mut body).ok()?;
    Some(hash.finish())
}

/// No text can be read as another and the beginning of the next.
fn text(hash: &mut Context, bytes: &[u8]) {
    hash.update(b"s");
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Adds a value to a digest.
struct Value<'h> {
    hash: &'h mut Context,
    depth: usize,
}

impl Value<'_> {
    fn add(self, kind: u8, bytes: &[u8]) {
        self.hash.update(&[kind]);
        self.hash.update(bytes);
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.add(b'n', &[]);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.add(b'b', &[value.into()]);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.add(b'u', &value.to_le_bytes());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.add(b'i', &value.to_le_bytes());
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        if value.abs() >= EXACT {
            return Err(E::custom("not exact"));
        }
        self.add(b'f', &value.to_le_bytes());
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        text(self.hash, value.as_bytes());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.hash.update(b"[");
        while seq.next_element_seed(Value { hash: self.hash, depth: self.depth + 1 })?.is_some() {}
        self.hash.update(b"]");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if self.depth == 0 && (key == "stream" || STATEFUL.contains(&key.as_ref())) {
                // Switched off is the same as not there.
                match map.next_value::<&RawValue>()?.get() {
                    "false" | "null" => continue,
                    _ => return Err(A::Error::custom("stateful")),
                }
            }
            let mut value = Context::new(&SHA256);
            map.next_value_seed(Value { hash: &mut value, depth: self.depth + 1 })?;
            entries.push((key, value.finish()));
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        // Which one counts depends on who reads it.
        if entries.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom("a field that comes twice"));
        }
        self.hash.update(b"{");
        for (key, value) in entries {
            text(self.hash, key.as_bytes());
            self.hash.update(value.as_ref());
        }
        self.hash.update(b"}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(body: &str) -> Option<Vec<u8>> {
        of(&[b"user", b"chat"], body.as_bytes()).map(|digest| digest.as_ref().to_vec())
    }

    #[test]
    fn the_same_request_written_differently_is_the_same() {
        let plain = digest(r#"{"model":"m","messages":[{"role":"user","content":"hé"}],"temperature":0.5}"#);
        assert!(plain.is_some());
        for same in [
            r#" { "temperature" : 5e-1, "messages":[ {"content":"h\u00e9","role":"user"} ], "model":"m" } "#,
            r#"{"model":"m","stream":false,"messages":[{"role":"user","content":"hé"}],"temperature":0.50}"#,
            r#"{"model":"m","store":null,"messages":[{"role":"user","content":"hé"}],"temperature":0.5}"#,
        ] {
            assert_eq!(digest(same), plain, "{same}");
        }
    }

    #[test]
    fn whatever_may_change_the_answer_makes_another_request() {
        let bodies = [
            r#"{"model":"m","messages":["a","b"]}"#,
            r#"{"model":"m","messages":["b","a"]}"#,
            r#"{"model":"m","messages":["ab"]}"#,
            r#"{"model":"m","messages":[["a"],"b"]}"#,
            r#"{"model":"m","messages":[["a","b"]]}"#,
            r#"{"model":"n","messages":["a","b"]}"#,
            r#"{"model":"m","messages":["a","b"],"seed":1}"#,
            r#"{"model":"m","messages":["a","b"],"seed":-1}"#,
            r#"{"model":"m","messages":["a","b"],"seed":1.0}"#,
            r#"{"model":"m","messages":["a","b"],"seed":"1"}"#,
            r#"{"model":"m","messages":["a","b"],"seed":true}"#,
            r#"{"model":"m","messages":["a","b"],"seed":null}"#,
            r#"{"model":"m","messages":["a","b"],"user":"x"}"#,
            r#"{"model":"m","messages":["a","b"],"x":{"stream":false}}"#,
            r#"{"model":"m","messages":["a","b"],"x":{}}"#,
            r#"{"model":"m","messages":["a","b"],"x":[]}"#,
        ];
        let digests: std::collections::HashSet<_> = bodies.iter().map(|body| digest(body).unwrap()).collect();
        assert_eq!(digests.len(), bodies.len());
        let other = of(&[b"use", b"rchat"], bodies[0].as_bytes()).unwrap();
        assert_ne!(digest(bodies[0]).unwrap(), other.as_ref(), "circumstances do not run into each other");
    }

    #[test]
    fn what_readers_may_read_differently_or_changes_the_engine_has_none() {
        for body in [
            r#"{"messages":[{"content":"a","content":"b"}]}"#,
            r#"{"messages":[{"content":"a","c\u006fntent":"b"}]}"#,
            r#"{"seed":123456789012345678901234567890}"#,
            r#"{"seed":9007199254740993.0}"#,
            r#"{"stream":true}"#,
            r#"{"store":true}"#,
            r#"{"background":true}"#,
            r#"{"previous_response_id":"resp_1"}"#,
            r#"{"conversation":{"id":"c"}}"#,
        ] {
            assert_eq!(digest(body), None, "{body}");
        }
    }
}
