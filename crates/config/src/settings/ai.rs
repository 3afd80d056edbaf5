//! The AI engines.

use std::{collections::BTreeMap, time::Duration};

use secrecy::SecretString;
use url::Url;

use super::{DAY, HOUR, MS, S, http_url};
use crate::reader::Reader;

/// The name of the engine at ENGINE_URL.
const FIRST: &str = "default";
/// In place of an engine's name.
const NO_ENGINE: &str = "off";

/// The AI engines, and all times.
#[derive(Debug, Clone)]
pub struct AiConfig {
    /// In order of preference; at least one.
    pub engines: Vec<EngineConfig>,
    /// Which engines have which models, first match first. Empty: every engine has all of them.
    pub models: Vec<ModelRule>,
    /// The name of the engine behind `/v1/ai/`, if there is one.
    pub passthrough: Option<String>,
    /// TCP and TLS.
    pub connect_timeout: Duration,
    /// How long the answer's head is held back.
    pub header_hold: Duration,
    /// Until the first event.
    pub first_token_timeout: Duration,
    /// Silence inside a stream.
    pub idle_timeout: Duration,
    /// Longest stream.
    pub stream_timeout: Duration,
    /// Longest answer that is not a stream.
    pub response_timeout: Duration,
    /// Retries before the first event.
    pub retries: u32,
    /// Comment after so much silence.
    pub heartbeat: Duration,
    /// Largest request body.
    pub max_body_bytes: usize,
}

/// One engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// In metrics, logs, usage rows and health reports.
    pub name: String,
    /// Base URL with its `/v1`, without a trailing slash.
    pub url: Url,
    /// Sent to it as a bearer token.
    pub api_key: Option<SecretString>,
}

/// Which engines have a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRule {
    /// The model's name; a `*` at the end stands for anything.
    pub pattern: String,
    /// Names of engines, in order of preference; at least one.
    pub engines: Vec<String>,
}

impl ModelRule {
    /// Whether the rule is about this model.
    pub fn matches(&self, model: &str) -> bool {
        match self.pattern.strip_suffix('*') {
            Some(prefix) => model.starts_with(prefix),
            None => self.pattern == model,
        }
    }
}

impl AiConfig {
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
        let engines = engines(r);
        let models = r.list("ENGINE_MODELS", model_rule);
        let passthrough = r.get::<String>("ENGINE_PASSTHROUGH");
        let connect_timeout = r.duration("ENGINE_CONNECT_TIMEOUT", MS(50), S(60));
        let header_hold = r.duration("ENGINE_HEADER_HOLD", MS(100), S(60));
        let first_token_timeout = r.duration("ENGINE_FIRST_TOKEN_TIMEOUT", MS(100), S(900));
        let idle_timeout = r.duration("ENGINE_IDLE_TIMEOUT", MS(100), S(900));
        let stream_timeout = r.duration("ENGINE_STREAM_TIMEOUT", S(1), S(DAY));
        let response_timeout = r.duration("ENGINE_RESPONSE_TIMEOUT", S(1), S(HOUR));
        let retries = r.number("ENGINE_RETRIES", 0, 3);
        let heartbeat = r.duration("STREAM_HEARTBEAT", MS(50), S(300));
        let max_body = r.number("AI_MAX_BODY_BYTES", 1_024, 268_435_456);
        let (engines, models) = (engines?, models?);
        let known = |name: &String| engines.iter().any(|engine| engine.name == *name);
        if let Some(name) = models.iter().flat_map(|rule| &rule.engines).find(|name| !known(name)) {
            r.problem("ENGINE_MODELS", format!("there is no engine {name:?} in ENGINES"));
        }
        let passthrough = passthrough.filter(|name| name != NO_ENGINE);
        if let Some(name) = passthrough.as_ref().filter(|name| !known(name)) {
            r.problem("ENGINE_PASSTHROUGH", format!("there is no engine {name:?} in ENGINES"));
        }
        Some(Self {
            engines,
            models,
            passthrough,
            connect_timeout: connect_timeout?,
            header_hold: header_hold?,
            first_token_timeout: first_token_timeout?,
            idle_timeout: idle_timeout?,
            stream_timeout: stream_timeout?,
            response_timeout: response_timeout?,
            retries: retries? as u32,
            heartbeat: heartbeat?,
            max_body_bytes: max_body? as usize,
        })
    }
}

/// ENGINE_URL first, then ENGINES; the keys of the latter stand apart, because only they are secret.
fn engines(r: &mut Reader<'_>) -> Option<Vec<EngineConfig>> {
    let first = r.with("ENGINE_URL", http_url);
    let first_key = r.get::<String>("ENGINE_API_KEY").map(SecretString::from);
    let others = r.list("ENGINES", |text| {
        let (name, url) = named(text, "local=http://ollama:11434/v1")?;
        Ok((name, http_url(url)?))
    });
    let keys = r.list("ENGINES_API_KEYS", |text| {
        let (name, key) = named(text, "openai=sk-...")?;
        Ok((name, key.to_owned()))
    });
    let (others, keys) = (others?, keys?);
    let count = keys.len();
    let mut keys: BTreeMap<String, String> = keys.into_iter().collect();
    if keys.len() < count {
        r.problem("ENGINES_API_KEYS", "an engine stands there twice");
    }
    let mut engines = vec![EngineConfig { name: FIRST.to_owned(), url: first?, api_key: first_key }];
    for (name, url) in others {
        if engines.iter().any(|engine| engine.name == name) {
            r.problem(
                "ENGINES",
                format!("every engine needs a name of its own, and {FIRST:?} is ENGINE_URL's"),
            );
            return None;
        }
        let api_key = keys.remove(&name).map(SecretString::from);
        engines.push(EngineConfig { name, url, api_key });
    }
    if !keys.is_empty() {
        // The names could be parts of keys that were cut in two by a comma.
        r.problem("ENGINES_API_KEYS", "every key needs an engine of its name in ENGINES");
    }
    Some(engines)
}

/// `NAME=VALUE`. What is wrong is told without the value: it may be a key.
fn named<'a>(text: &'a str, example: &str) -> Result<(String, &'a str), String> {
    let shape = || format!("expected NAME=VALUE such as {example}; names take 1 to 32 of a-z 0-9 -");
    let (name, value) = text.split_once('=').ok_or_else(shape)?;
    let fine = (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !value.is_empty();
    if fine { Ok((name.to_owned(), value)) } else { Err(shape()) }
}

fn model_rule(text: &str) -> Result<ModelRule, String> {
    const SHAPE: &str =
        "expected MODEL=ENGINE or MODEL=ENGINE|ENGINE such as gpt-*=openai|default; a * ends a model's name";
    let (pattern, engines) = text.split_once('=').ok_or(SHAPE)?;
    let engines: Vec<String> = engines.split('|').map(|name| name.trim().to_owned()).collect();
    let stars = pattern.matches('*').count();
    let fine = !pattern.is_empty()
        && (stars == 0 || stars == 1 && pattern.ends_with('*'))
        && engines.iter().all(|name| !name.is_empty());
    if fine { Ok(ModelRule { pattern: pattern.to_owned(), engines }) } else { Err(SHAPE.to_owned()) }
}
