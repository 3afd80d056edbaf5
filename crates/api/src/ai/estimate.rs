//! About how many tokens are in a request, before the engine counts.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};

/// What an image, a sound or a file costs, whatever its size: its bytes say nothing about its tokens.
const BLOB_TOKENS: u64 = 1_000;

/// Estimates the tokens of any JSON value: a quarter of its ASCII and one for each other character in its texts, one for a
/// number (which may be a token), a constant for what is not text. Engines count exactly afterwards.
pub(super) struct Estimate {
    /// The value stands under a name that means encoded bytes.
    blob: bool,
}

impl Estimate {
    /// For a value that stands under no such name.
    pub(super) const TEXT: Self = Self { blob: false };
}

/// What was found in a value.
#[derive(Debug, Default)]
pub(super) struct Estimated {
    /// About so many tokens.
    pub tokens: u64,
    /// It is a list.
    pub is_list: bool,
    /// Items of the list.
    pub items: u64,
}

impl<'de> DeserializeSeed<'de> for Estimate {
    type Value = Estimated;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Estimated, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Estimate {
    type Value = Estimated;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Estimated, E> {
        Ok(Estimated::default())
    }

    fn visit_unit<E>(self) -> Result<Estimated, E> {
        Ok(Estimated::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Estimated, E> {
        Ok(Estimated { tokens: 1, ..Estimated::default() })
    }

    fn visit_u64<E>(self, _: u64) -> Result<Estimated, E> {
        Ok(Estimated { tokens: 1, ..Estimated::default() })
    }

    fn visit_f64<E>(self, _: f64) -> Result<Estimated, E> {
        Ok(Estimated { tokens: 1, ..Estimated::default() })
    }

    fn visit_str<E>(self, text: &str) -> Result<Estimated, E> {
        let tokens = if self.blob || text.starts_with("data:") { BLOB_TOKENS } else { estimate_tokens(text) };
        Ok(Estimated { tokens, ..Estimated::default() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Estimated, A::Error> {
        let mut all = Estimated { is_list: true, ..Estimated::default() };
        while let Some(item) = seq.next_element_seed(Estimate { blob: false })? {
            all.tokens = all.tokens.saturating_add(item.tokens);
            all.items += 1;
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Estimated, A::Error> {
        // Role and separators of a message.
        let mut all = Estimated { tokens: 3, ..Estimated::default() };
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let blob = matches!(key.as_ref(), "data" | "file_data" | "b64_json");
            let value = map.next_value_seed(Estimate { blob })?;
            all.tokens = all.tokens.saturating_add(value.tokens);
        }
        Ok(all)
    }
}

/// About so many tokens are in a text.
fn estimate_tokens(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    // Every character outside ASCII has one byte that does not continue another.
    let other = text.bytes().filter(|b| *b >= 0xC0).count();
    (ascii.div_ceil(4) + other) as u64
}
