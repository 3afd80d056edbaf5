//! What Postgres' `jsonb` cannot take although it is JSON: NUL characters, and nesting that exhausts its stack.

use std::{borrow::Cow, io};

use serde_json::Value;

const MAX_DEPTH: usize = 100;
const MAX_TEXT_CHARS: usize = 4_000;

/// Says why `jsonb` would refuse the value, if it would.
pub(crate) fn check(value: &Value) -> Result<(), &'static str> {
    walk(value, MAX_DEPTH)
}

fn walk(value: &Value, depth: usize) -> Result<(), &'static str> {
    let Some(depth) = depth.checked_sub(1) else { return Err("it is nested too deeply") };
    let text = |s: &str| if s.contains('\0') { Err("it contains a NUL character") } else { Ok(()) };
    match value {
        Value::String(s) => text(s),
        Value::Array(items) => items.iter().try_for_each(|v| walk(v, depth)),
        Value::Object(fields) => fields.iter().try_for_each(|(k, v)| text(k).and_then(|()| walk(v, depth))),
        _ => Ok(()),
    }
}

/// The length of the serialised value, without serialising it into memory.
pub(crate) fn len(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 += buf.len();
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Neither a Value nor a counter can fail.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

/// An error text as a `text` column takes it, and not longer than a page.
pub(crate) fn text(text: &str) -> String {
    let clean =
        if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) };
    match clean.char_indices().nth(MAX_TEXT_CHARS) {
        Some((at, _)) => format!("{}…", &clean[..at]),
        None => clean.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nul_and_deep_nesting_are_found_wherever_they_are() {
        assert_eq!(check(&json!({"a": [1, {"b": "c"}]})), Ok(()));
        assert!(check(&json!({"a": [1, {"b": "\0"}]})).is_err());
        assert!(check(&json!({"a\0": 1})).is_err());
        let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
        assert!(check(&deep).is_err());
    }

    #[test]
    fn error_texts_are_cut_and_cleaned() {
        assert_eq!(text("a\0b"), "a\u{fffd}b");
        assert_eq!(text(&"ü".repeat(5_000)).chars().count(), MAX_TEXT_CHARS + 1);
        assert_eq!(len(&json!({"a": "\n"})), r#"{"a":"\n"}"#.len());
    }
}
