//! Values that must not turn up, and the shapes in which they might.

use std::collections::BTreeMap;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// Where a value may stand, because it is meant to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Nowhere: passwords, keys, tokens. Tokens stand in the one answer that issues them, which is looked at before they are
    /// learned.
    Secret,
    /// What users write, such as names and prompts: the stores and answers may hold it, telemetry may not.
    Content,
}

/// Where something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Logs,
    Sentry,
    Traces,
    Postgres,
    Redis,
    Answer,
}

impl Place {
    fn may_hold(self, class: Class) -> bool {
        class == Class::Content && matches!(self, Self::Postgres | Self::Redis | Self::Answer)
    }
}

#[derive(Debug, Default)]
pub(super) struct Secrets {
    /// By needle: what it is called, and its class.
    needles: BTreeMap<String, (String, Class)>,
}

impl Secrets {
    /// A value that nobody else has.
    pub(super) fn new_value(&mut self, name: &str, class: Class) -> String {
        let value = format!("canary-{}-{}", name.replace(' ', "-"), uuid::Uuid::new_v4().simple());
        self.learn(name, &value, class);
        value
    }

    /// Adds a value in all the shapes in which it might be written down.
    pub(super) fn learn(&mut self, name: &str, value: &str, class: Class) {
        let mut add = |text: &str| {
            assert!(text.len() >= 12, "{name}: too short to be told from other text");
            let hex = api::auth::hex(text.as_bytes());
            let (standard, url_safe) = (STANDARD_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(text));
            for needle in [text.to_owned(), hex, standard, url_safe] {
                self.needles.insert(needle, (name.to_owned(), class));
            }
        };
        match value.split_once('_') {
            // A random token behind its prefix: its bytes may be written down in another way.
            Some(("rt" | "ot" | "tk", random)) => {
                add(random);
                let bytes = URL_SAFE_NO_PAD.decode(random).unwrap();
                self.needles.insert(api::auth::hex(&bytes), (name.to_owned(), class));
            }
            // The public part of an API key may be shown.
            Some(("blst", rest)) => add(&rest.split_once('_').unwrap().1[..64]),
            _ if value.starts_with("eyJ") => add(value.rsplit_once('.').unwrap().1),
            _ => add(value),
        }
    }

    /// What a text holds that it must not, with the words before it.
    pub(super) fn found_in(&self, place: Place, what: &str, text: &str) -> Vec<String> {
        let forbidden = self.needles.iter().filter(|(_, (_, class))| !place.may_hold(*class));
        forbidden
            .filter_map(|(needle, (name, _))| {
                let before: Vec<char> = text[..text.find(needle.as_str())?].chars().rev().take(200).collect();
                let before: String = before.into_iter().rev().collect();
                Some(format!("{place:?}, {what}: holds {name}, after\n{before}\n"))
            })
            .collect()
    }

    /// What looks like a refresh token or a mailed one, whether it is known here or not.
    pub(super) fn tokens_in(text: &str) -> Vec<String> {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        ["rt_", "ot_", "tk_"]
            .iter()
            .flat_map(|prefix| text.match_indices(prefix))
            .filter(|(at, _)| !text[..*at].ends_with(part))
            .map(|(at, _)| text[at..].chars().take_while(|c| part(*c)).collect::<String>())
            .filter(|token| token.len() == 46)
            .collect()
    }

    pub(super) fn count(&self) -> usize {
        self.needles.len()
    }
}
