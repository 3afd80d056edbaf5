//! Token counts, as engines report them.

use serde::Deserialize;
use serde_json::value::RawValue;

/// More than this is not believed: sums must fit the database's integers.
const MAX: u64 = 1 << 40;

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Read.
    pub prompt: u64,
    /// Written.
    pub completion: u64,
}

/// The two vocabularies: chat completions and embeddings, and responses.
#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names are the protocols'")]
struct Counts {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Usage {
    /// Reads a `usage` object; `None` for `null` and for what makes no sense.
    pub fn parse(text: &str) -> Option<Self> {
        let counts: Counts = serde_json::from_str(text).ok()?;
        let prompt = counts.prompt_tokens.or(counts.input_tokens);
        let completion = counts.completion_tokens.or(counts.output_tokens);
        if prompt.is_none() && completion.is_none() {
            return None;
        }
        Some(Self { prompt: prompt.unwrap_or(0).min(MAX), completion: completion.unwrap_or(0).min(MAX) })
    }
}

/// The parts of a JSON answer, or of an event's data, that tell about usage. Everything else is skipped, but must be JSON.
#[derive(Deserialize)]
pub struct Report<'a> {
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<&'a RawValue>,
}

impl<'a> Report<'a> {
    /// An error means that `data` is no JSON object.
    pub fn parse(data: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(data)
    }

    /// What was used: told at the top, or inside the `response` of a closing event.
    pub fn usage(&self) -> Option<Usage> {
        if let Some(usage) = self.usage {
            return Usage::parse(usage.get());
        }
        let inner: Report<'_> = serde_json::from_str(self.response?.get()).ok()?;
        Usage::parse(inner.usage?.get())
    }

    /// True when there is nothing in it but usage.
    pub fn is_only_usage(&self) -> bool {
        self.choices
            .is_some_and(|choices| choices.get().bytes().filter(|b| !b.is_ascii_whitespace()).eq(*b"[]"))
            && self.usage().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_vocabularies_are_read_and_nonsense_is_not() {
        let used = |prompt, completion| Some(Usage { prompt, completion });
        for (text, expected) in [
            (r#"{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}"#, used(3, 4)),
            (r#"{"input_tokens":3,"output_tokens":4,"input_tokens_details":{}}"#, used(3, 4)),
            (r#"{"prompt_tokens":3,"input_tokens":3,"completion_tokens":null}"#, used(3, 0)),
            (r#"{"prompt_tokens":18446744073709551615}"#, used(MAX, 0)),
            (r#"{"prompt_tokens":-1}"#, None),
            ("{}", None),
            ("null", None),
            ("7", None),
        ] {
            assert_eq!(Usage::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn reports_are_found_where_protocols_put_them() {
        let chat = br#"{"id":"x","choices":[ ],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        assert!(Report::parse(chat).unwrap().is_only_usage());
        let with_text = br#"{"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let report = Report::parse(with_text).unwrap();
        assert!(!report.is_only_usage() && report.usage().is_some());
        let filter = br#"{"choices":[],"prompt_filter_results":[],"usage":null}"#;
        assert!(!Report::parse(filter).unwrap().is_only_usage());
        let responses =
            br#"{"type":"response.completed","response":{"usage":{"input_tokens":1,"output_tokens":2}}}"#;
        assert_eq!(Report::parse(responses).unwrap().usage(), Some(Usage { prompt: 1, completion: 2 }));
        assert!(Report::parse(b"<html>").is_err());
    }
}
