//! What must never reach a log line, an error report or a trace.

use std::{
    borrow::Cow,
    cell::Cell,
    sync::{LazyLock, OnceLock},
};

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted]";

const SENSITIVE: [&str; 11] = [
    "authorization",
    "cookie",
    "password",
    "passwd",
    "secret",
    "token",
    "api_key",
    "apikey",
    "api-key",
    "dsn",
    "credential",
];
/// Counts and limits of AI tokens, not secrets.
const HARMLESS: [&str; 6] =
    ["tokens", "token_type", "token_usage", "first_token", "token_interval", "secret_count"];

/// All words are looked for in one go.
fn any_of<P: AsRef<[u8]>>(words: impl IntoIterator<Item = P>) -> AhoCorasick {
    let mut builder = AhoCorasickBuilder::new();
    builder.match_kind(MatchKind::LeftmostLongest).ascii_case_insensitive(true);
    builder.build(words).expect("a few short words")
}

/// [`is_sensitive`] for names in the program, of which there are only so many: each has a place, by its address, where the answer
/// is kept.
pub(crate) fn is_sensitive_name(field: &'static str) -> bool {
    type Known = [Cell<Option<(&'static str, bool)>>; 128];
    thread_local! {
        static KNOWN: Known = const { [const { Cell::new(None) }; 128] };
    }
    KNOWN.with(|known| {
        let place = &known[(field.as_ptr().addr() + field.len()) % known.len()];
        match place.get() {
            Some((name, answer)) if std::ptr::eq(name, field) => answer,
            _ => {
                let answer = is_sensitive(field);
                place.set(Some((field, answer)));
                answer
            }
        }
    })
}

/// True for a field whose value must not be shown, by its name.
pub fn is_sensitive(field: &str) -> bool {
    static BAD: LazyLock<AhoCorasick> = LazyLock::new(|| any_of(SENSITIVE));
    static GOOD: LazyLock<AhoCorasick> = LazyLock::new(|| any_of(HARMLESS));
    BAD.is_match(field) && !GOOD.is_match(field)
}

/// Shorter ones are not learned: a password such as `ballast` is a part of ordinary words.
const SHORTEST: usize = 16;

static LEARNED: OnceLock<Option<AhoCorasick>> = OnceLock::new();

/// Tells which secrets this process was given, once, at its start. From then on they are removed wherever they stand: an
/// engine that refuses a key likes to quote it, and no pattern knows what that key looks like.
pub fn learn(secrets: impl IntoIterator<Item = String>) {
    let long: Vec<String> = secrets.into_iter().filter(|secret| secret.len() >= SHORTEST).collect();
    let mut builder = AhoCorasickBuilder::new();
    // Its prefilter looks for rare bytes. There are none: most texts are ids, and most secrets hexadecimal digits.
    builder.match_kind(MatchKind::LeftmostLongest).prefilter(false);
    let built = builder.build(&long).expect("a few dozen secrets");
    // A second start in one process (tests) keeps the first ones.
    let _ = LEARNED.set((!long.is_empty()).then_some(built));
}

/// Removes what looks like a credential from free text: JSON web tokens, bearer headers, API keys of ours (`blst_`) and
/// of engines (`sk-`), refresh tokens (`rt_`) and one-time tokens (`ot_`), and passwords in URLs.
/// And the secrets of this process, if they were told to [`learn`].
pub fn text(input: &str) -> Cow<'_, str> {
    match LEARNED.get() {
        Some(Some(learned)) if input.len() >= SHORTEST && learned.is_match(input) => {
            let places = vec![REDACTED; learned.patterns_len()];
            Cow::Owned(patterns(&learned.replace_all(input, &places)).into_owned())
        }
        _ => patterns(input),
    }
}

fn patterns(input: &str) -> Cow<'_, str> {
    if !is_marked(input) {
        return Cow::Borrowed(input);
    }
    let mut out = String::with_capacity(input.len());
    for word in split_keeping_separators(input) {
        out.push_str(&redact_word(word, out.ends_with("Bearer ") || out.ends_with("bearer ")));
    }
    Cow::Owned(out)
}

/// Whether one of the marks `eyJ`, `blst_`, `sk-`, `rt_`, `ot_`, `Bearer ` and `://` may stand in it, told by its last three
/// characters. Nearly every text of a log line has none.
fn is_marked(input: &str) -> bool {
    input.as_bytes().windows(3).any(|end| match end[2] {
        b'j' | b'J' => end[..2].eq_ignore_ascii_case(b"ey"),
        b'_' => [b"st", b"rt", b"ot"].iter().any(|before| end[..2].eq_ignore_ascii_case(*before)),
        b'-' => end[..2].eq_ignore_ascii_case(b"sk"),
        b' ' => end[..2].eq_ignore_ascii_case(b"er"),
        b'/' => &end[..2] == b":/",
        _ => false,
    })
}

fn split_keeping_separators(input: &str) -> impl Iterator<Item = &str> {
    input.split_inclusive(|c: char| {
        c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '&' | '(' | ')' | '{' | '}' | '<' | '>')
    })
}

fn redact_word(word: &str, after_bearer: bool) -> Cow<'_, str> {
    let body = word.trim_end_matches(|c: char| {
        c.is_whitespace() || c.is_ascii_punctuation() && !matches!(c, '_' | '-' | '.' | '/')
    });
    let tail = &word[body.len()..];
    let value_start = body.rfind(['=', ':']).map_or(0, |i| i + 1);
    let looks_secret = |v: &str| {
        (v.starts_with("eyJ") && v.matches('.').count() >= 2)
            || v.starts_with("blst_")
            || (v.starts_with("sk-") && v.len() > 12)
            // 256 bits in base64url.
            || (v.starts_with("rt_") || v.starts_with("ot_")) && v.len() >= 46
    };
    if after_bearer && !body.is_empty() {
        return Cow::Owned(format!("{REDACTED}{tail}"));
    }
    if looks_secret(&body[value_start..]) {
        return Cow::Owned(format!("{}{REDACTED}{tail}", &body[..value_start]));
    }
    // scheme://user:password@host
    if let Some(scheme) = word.find("://")
        && let Some(at) = word[scheme + 3..].rfind('@').map(|i| i + scheme + 3)
        && let Some(colon) = word[scheme + 3..at].find(':').map(|i| i + scheme + 3)
    {
        return Cow::Owned(format!("{}:{REDACTED}{}", &word[..colon], &word[at..]));
    }
    Cow::Borrowed(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sensitive_names_are_known_and_token_counts_are_not_secrets() {
        for name in [
            "Authorization",
            "refresh_token",
            "db.password",
            "X-API-Key",
            "sentry_dsn",
            "client_secret",
            "set-cookie",
        ] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in ["prompt_tokens", "completion_tokens", "first_token_ms", "token_type", "path", "user_id"]
        {
            assert!(!is_sensitive(name), "{name}");
        }
    }

    #[test]
    fn credentials_in_free_text_are_removed_and_the_rest_stays() {
        let cases = [
            ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
            ("got eyJhbGciOi.eyJzdWIi.c2ln, sorry", "got [redacted], sorry"),
            ("key=blst_abc_def&x=1", "key=[redacted]&x=1"),
            ("postgres://u:hunter2@db:5432/x failed", "postgres://u:[redacted]@db:5432/x failed"),
            ("sk-abcdefghijklmnop", "[redacted]"),
            ("rt_0123456789012345678901234567890123456789012, ", "[redacted], "),
            (
                "https://app.example/x#token=ot_012345678901234567890123456789012345678901_",
                "https://app.example/x#token=[redacted]",
            ),
            ("ot_her words, rt_x", "ot_her words, rt_x"),
            ("nothing here", "nothing here"),
            ("see https://docs.rs/x", "see https://docs.rs/x"),
        ];
        for (input, wanted) in cases {
            assert_eq!(text(input), wanted);
        }
    }

    /// Case H10.
    #[test]
    fn secrets_of_the_process_are_removed_whatever_they_look_like() {
        assert_eq!(text("refused: plain-looking-key-77"), "refused: plain-looking-key-77");
        learn(["plain-looking-key-77".to_owned(), "harbour".to_owned()]);
        assert_eq!(
            text("refused: (plain-looking-key-77), twice plain-looking-key-77x; Bearer abc"),
            "refused: ([redacted]), twice [redacted]x; Bearer [redacted]"
        );
        assert_eq!(text("harbour is an ordinary word"), "harbour is an ordinary word");
    }
}
