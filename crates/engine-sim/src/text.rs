//! The words of an answer: an endless, deterministic sequence of tokens that begins by saying what it is.

use crate::hash::{SplitMix, fnv1a};

// No token needs escaping in JSON: frames are put together by hand (a test holds it).
const OPENING: [&str; 14] = [
    "This",
    " is",
    " a",
    " simulation",
    ":",
    " no",
    " model",
    " was",
    " asked",
    ",",
    " engine",
    "-sim",
    " answers",
    ".",
];
const WORDS: [&str; 32] = [
    " signal",
    " ballast",
    " track",
    " sleeper",
    " gauge",
    " freight",
    " junction",
    " lantern",
    " timetable",
    " bridge",
    " tunnel",
    " whistle",
    " platform",
    " engine",
    " carriage",
    " points",
    " the",
    " a",
    " and",
    " of",
    " under",
    " over",
    " carries",
    " waits",
    " arrives",
    " leaves",
    " slowly",
    " steady",
    " early",
    " late",
    " quiet",
    " long",
];
// Two to four bytes per character, joined emoji, flags and combining marks: what breaks when bytes are split wrongly.
const UNICODE: [&str; 12] = [
    " 模拟",
    "回答",
    "，列车",
    "出发。",
    " 日本語",
    "の駅",
    " 한국어",
    " 🚂",
    "🚃🚃",
    " 👩‍🚀",
    " 🇯🇵",
    " cafe\u{301}",
];

/// An endless iterator over tokens.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    random: SplitMix,
    position: usize,
    unicode: bool,
}

impl Text {
    /// `choice` tells the alternatives of one request (`n`) apart.
    pub(crate) fn new(seed: u64, prompt: &str, choice: usize, unicode: bool) -> Self {
        let random = SplitMix(fnv1a(seed, prompt.as_bytes()).wrapping_add(choice as u64));
        Self { random, position: 0, unicode }
    }
}

impl Iterator for Text {
    type Item = &'static str;

    fn next(&mut self) -> Option<&'static str> {
        let position = self.position;
        self.position += 1;
        if let Some(token) = OPENING.get(position) {
            return Some(token);
        }
        let random = self.random.next() as usize;
        Some(match position % 12 {
            1 => ".",
            even if self.unicode && even % 2 == 0 => UNICODE[random % UNICODE.len()],
            _ => WORDS[random % WORDS.len()],
        })
    }
}

/// True for CJK, Hangul, emoji and everything above them: prompts in such scripts are answered in kind.
pub(crate) fn wants_unicode(prompt: &str) -> bool {
    prompt.chars().any(|c| c >= '\u{2e80}' || ('\u{2600}'..='\u{27bf}').contains(&c))
}

/// The longest answer that is held in memory whole; a chat stream may be longer.
pub(crate) const MAX_WHOLE_TOKENS: usize = 1_000_000;

/// A rough count of tokens: four bytes each, as is common for English.
pub(crate) fn count_tokens(text: &str) -> usize {
    text.len().div_ceil(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_needs_escaping() {
        for token in OPENING.iter().chain(&WORDS).chain(&UNICODE) {
            assert_eq!(serde_json::json!(token).to_string(), format!("\"{token}\""));
        }
    }

    #[test]
    fn the_text_depends_on_seed_prompt_and_choice_only() {
        let text = |seed, prompt, choice| Text::new(seed, prompt, choice, false).take(50).collect::<String>();
        assert_eq!(text(1, "hello", 0), text(1, "hello", 0));
        assert_ne!(text(1, "hello", 0), text(2, "hello", 0));
        assert_ne!(text(1, "hello", 0), text(1, "hallo", 0));
        assert_ne!(text(1, "hello", 0), text(1, "hello", 1));
        assert!(
            text(1, "hello", 0).starts_with("This is a simulation: no model was asked, engine-sim answers.")
        );
    }

    #[test]
    fn prompts_in_cjk_or_emoji_are_answered_in_kind() {
        assert!(wants_unicode("你好") && wants_unicode("go 🚂") && wants_unicode("한") && wants_unicode("☀"));
        assert!(!wants_unicode("hello, naïve – “quotes”"));
        let text: String = Text::new(0, "你好", 0, true).take(60).collect();
        assert!(
            text.chars().any(|c| ('\u{4e00}'..'\u{a000}').contains(&c))
                && text.chars().any(|c| c > '\u{1f000}')
        );
    }
}
