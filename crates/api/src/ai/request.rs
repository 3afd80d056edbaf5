//! What the proxy needs to know of a request's body. The body is read once and forwarded as it came, but for one insertion.

use std::{borrow::Cow, fmt, ops::Range};

use bytes::{Bytes, BytesMut};
use serde::{
    Deserialize, Deserializer,
    de::{Error as DeError, MapAccess, Unexpected, Visitor},
};
use serde_json::value::RawValue;

use super::{Protocol, estimate::Estimate, failure::Failure};

/// Longest name of a model.
const MAX_MODEL: usize = 256;
/// Most tokens that a limit may name: more than any model makes, and what every JSON reader takes for a whole number.
const MAX_LIMIT: u64 = i32::MAX as u64;
/// Most answers to one prompt.
const MAX_CHOICES: u64 = 128;

/// A request's body, understood.
#[derive(Debug)]
pub(super) struct Call {
    /// What goes to the engine.
    pub body: Bytes,
    /// The model that is asked for; empty on the passthrough route when there is none.
    pub model: Box<str>,
    /// The client wants a stream.
    pub stream: bool,
    /// The event that only reports usage is left out: we asked for it, not the client.
    pub strip_usage: bool,
    /// Our estimate of the prompt.
    pub prompt_tokens: u64,
    /// The client's own limit on the answer, over all its choices.
    pub completion_limit: Option<u64>,
}

impl Call {
    /// Reads a body. Everything wrong with it that we can tell is told here, before anything is spent on it.
    pub(super) fn parse(protocol: Protocol, body: &Bytes) -> Result<Self, Failure> {
        let fields: Fields<'_> = serde_json::from_slice(body).map_err(|error| refuse(&error))?;
        let model = fields.model(protocol)?;
        let choices = fields.n.map_or(1, |n| n.0);
        if !(1..=MAX_CHOICES).contains(&choices) {
            return Err(Failure::param("n", format!("n must be between 1 and {MAX_CHOICES}.")));
        }
        let limits = [fields.completion_tokens, fields.max_tokens, fields.output_tokens];
        let mut limits = limits.into_iter().flatten().map(|limit| limit.0);
        if limits.clone().any(|limit| !(1..=MAX_LIMIT).contains(&limit)) {
            let message = format!("The limit on tokens must be between 1 and {MAX_LIMIT}.");
            return Err(Failure::param("max_tokens", message));
        }
        let limit = limits.next();
        match protocol {
            Protocol::Chat if !fields.messages.is_some_and(|messages| messages) => {
                return Err(Failure::param("messages", "messages must be a list of at least one message."));
            }
            Protocol::Embeddings if !fields.input => {
                return Err(Failure::param("input", "input must be a text or a list of texts."));
            }
            _ => {}
        }
        let stream = fields.stream.unwrap_or(false) && protocol != Protocol::Embeddings;
        let edit = match (protocol, stream) {
            (Protocol::Chat, true) => ask_for_usage(body, fields.stream_options)?,
            _ => None,
        };
        Ok(Self {
            model,
            stream,
            strip_usage: edit.is_some(),
            prompt_tokens: fields.tokens.max(1),
            completion_limit: limit.map(|limit| limit.saturating_mul(choices)),
            body: edit.map_or_else(|| body.clone(), |edit| edit.apply(body)),
        })
    }
}

fn refuse(error: &serde_json::Error) -> Failure {
    // serde quotes what it found, which may be private; what it expected and where is enough.
    let place = format!("line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let reason = match error.classify() {
        serde_json::error::Category::Data => {
            let expected = text.split(", expected ").nth(1).and_then(|rest| rest.split(" at line").next());
            match expected {
                Some(expected) => format!("expected {expected}"),
                None => text.split(" at line").next().unwrap_or_default().chars().take(100).collect(),
            }
        }
        _ if text.starts_with("recursion limit") => "it is nested too deeply".to_owned(),
        _ => "it is not valid JSON".to_owned(),
    };
    Failure::Refused(crate::Error::bad_request(
        "invalid_json",
        format!("The body could not be read: {reason} ({place})."),
    ))
}

/// A change of a body: this text in that place.
struct Edit(Range<usize>, Cow<'static, str>);

impl Edit {
    fn apply(&self, body: &Bytes) -> Bytes {
        let Self(place, text) = self;
        let mut edited = BytesMut::with_capacity(body.len() + text.len());
        edited.extend_from_slice(&body[..place.start]);
        edited.extend_from_slice(text.as_bytes());
        edited.extend_from_slice(&body[place.end..]);
        edited.freeze()
    }
}

/// What to change so that the engine reports usage; `None` when the client asked for it already.
fn ask_for_usage(body: &Bytes, options: Option<&RawValue>) -> Result<Option<Edit>, Failure> {
    const ASK: &str = r#"{"include_usage":true}"#;
    let Some(options) = options else {
        let begin = body.iter().position(|b| *b == b'{').map_or(0, |brace| brace + 1);
        return Ok(Some(Edit(begin..begin, format!(r#""stream_options":{ASK},"#).into())));
    };
    if options.get() == "null" {
        return Ok(Some(Edit(span(body, options), ASK.into())));
    }
    let Ok(inner) = serde_json::from_str::<StreamOptions<'_>>(options.get()) else {
        return Err(Failure::param("stream_options", "stream_options must be an object."));
    };
    match inner.include_usage.map(|value| (value, value.get())) {
        Some((_, "true")) => Ok(None),
        Some((value, "false" | "null")) => Ok(Some(Edit(span(body, value), "true".into()))),
        Some(_) => Err(Failure::param("stream_options", "include_usage must be true or false.")),
        None => {
            let begin = span(body, options).start + 1;
            let comma = if inner.is_empty { "" } else { "," };
            Ok(Some(Edit(begin..begin, format!(r#""include_usage":true{comma}"#).into())))
        }
    }
}

/// Where a value that was borrowed from `body` stands in it.
fn span(body: &Bytes, value: &RawValue) -> Range<usize> {
    let begin = value.get().as_ptr() as usize - body.as_ptr() as usize;
    begin..begin + value.get().len()
}

#[derive(Default)]
struct StreamOptions<'a> {
    include_usage: Option<&'a RawValue>,
    is_empty: bool,
}

impl<'de> Deserialize<'de> for StreamOptions<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Options;
        impl<'de> Visitor<'de> for Options {
            type Value = StreamOptions<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut options = StreamOptions { include_usage: None, is_empty: true };
                while let Some((key, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    options.is_empty = false;
                    if key == "include_usage" && options.include_usage.replace(value).is_some() {
                        return Err(A::Error::duplicate_field("include_usage"));
                    }
                }
                Ok(options)
            }
        }
        deserializer.deserialize_map(Options)
    }
}

/// A whole number, which `5.0` is too (JSON Schema 2020-12, section 6.1.1 of its validation).
#[derive(Debug, Clone, Copy)]
struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of 0 or more")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number))
            }

            fn visit_f64<E: DeError>(self, number: f64) -> Result<Whole, E> {
                if number < 0.0 || number.fract() != 0.0 {
                    return Err(E::invalid_value(Unexpected::Float(number), &self));
                }
                // What is too large stays too large.
                Ok(Whole(number as u64))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// The fields of a body that matter here.
#[derive(Debug, Default)]
struct Fields<'a> {
    model: Option<Cow<'a, str>>,
    stream: Option<bool>,
    stream_options: Option<&'a RawValue>,
    max_tokens: Option<Whole>,
    completion_tokens: Option<Whole>,
    output_tokens: Option<Whole>,
    n: Option<Whole>,
    /// Whether it is a list with something in it.
    messages: Option<bool>,
    /// Whether there is any.
    input: bool,
    tokens: u64,
}

impl Fields<'_> {
    fn model(&self, protocol: Protocol) -> Result<Box<str>, Failure> {
        match self.model.as_deref() {
            None | Some("") if protocol == Protocol::Passthrough => Ok("".into()),
            None | Some("") => Err(Failure::param("model", "You must provide a model.")),
            Some(name) if name.len() > MAX_MODEL || name.chars().any(char::is_control) => {
                let message = format!("model must be at most {MAX_MODEL} bytes without control characters.");
                Err(Failure::param("model", message))
            }
            Some(name) => Ok(name.into()),
        }
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Body)
    }
}

struct Body;

impl<'de> Visitor<'de> for Body {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        // A field that comes twice is refused: the engine might take the other one.
        let mut seen = 0_u16;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let known = KNOWN.iter().position(|name| *name == key);
            if let Some(bit) = known {
                if seen & (1 << bit) != 0 {
                    return Err(A::Error::duplicate_field(KNOWN[bit]));
                }
                seen |= 1 << bit;
            }
            match known.map(|bit| KNOWN[bit]) {
                Some("model") => fields.model = map.next_value()?,
                Some("stream") => fields.stream = map.next_value()?,
                Some("stream_options") => fields.stream_options = Some(map.next_value()?),
                Some("max_tokens") => fields.max_tokens = map.next_value()?,
                Some("max_completion_tokens") => fields.completion_tokens = map.next_value()?,
                Some("max_output_tokens") => fields.output_tokens = map.next_value()?,
                Some("n") => fields.n = map.next_value()?,
                known => {
                    let estimate = map.next_value_seed(Estimate::TEXT)?;
                    fields.tokens = fields.tokens.saturating_add(estimate.tokens);
                    match known {
                        Some("messages") => fields.messages = Some(estimate.is_list && estimate.items > 0),
                        Some("input") => fields.input = estimate.is_list || estimate.tokens > 0,
                        _ => {}
                    }
                }
            }
        }
        Ok(fields)
    }
}

const KNOWN: [&str; 9] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "messages",
    "input",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(protocol: Protocol, body: &str) -> Result<Call, String> {
        Call::parse(protocol, &Bytes::copy_from_slice(body.as_bytes())).map_err(|failure| failure.message())
    }

    fn forwarded(body: &str) -> (String, bool) {
        let call = parse(Protocol::Chat, body).unwrap();
        (String::from_utf8(call.body.to_vec()).unwrap(), call.strip_usage)
    }

    #[test]
    fn usage_is_asked_for_and_nothing_else_is_touched() {
        let messages =
            r#""messages": [{"role":"user","content":"h\u00e9 \"stream_options\""}] , "model":"m""#;
        let stream = format!(r#" {{ {messages},"stream":true,  "x":1.50e3}} "#);
        let asked = stream.replacen('{', r#"{"stream_options":{"include_usage":true},"#, 1);
        assert_eq!(forwarded(&stream), (asked, true));
        for (theirs, ours, strip) in [
            (r#"{"include_usage":true}"#, r#"{"include_usage":true}"#, false),
            (r#"{ "include_usage" : false }"#, r#"{ "include_usage" : true }"#, true),
            (r#"{"include_usage":null,"a":1}"#, r#"{"include_usage":true,"a":1}"#, true),
            (r#"{"a":[1]}"#, r#"{"include_usage":true,"a":[1]}"#, true),
            ("{}", r#"{"include_usage":true}"#, true),
            ("null", r#"{"include_usage":true}"#, true),
        ] {
            let body = |options| format!(r#"{{{messages},"stream":true,"stream_options":{options}}}"#);
            assert_eq!(forwarded(&body(theirs)), (body(ours), strip), "{theirs}");
        }
        let whole = format!("{{{messages}}}");
        assert_eq!(forwarded(&whole), (whole, false), "no stream, no question");
    }

    #[test]
    fn the_responses_protocol_is_never_edited() {
        let body = r#"{"model":"m","input":"x","stream":true,"max_output_tokens":7}"#;
        let call = parse(Protocol::Responses, body).unwrap();
        assert_eq!((&*call.body, call.stream, call.strip_usage), (body.as_bytes(), true, false));
        assert_eq!(call.completion_limit, Some(7));
    }

    #[test]
    fn bad_bodies_are_told_what_is_wrong() {
        let deep = format!(r#"{{"model":"m","messages":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        let long = format!(r#"{{"model":"{}","messages":[1]}}"#, "m".repeat(257));
        for (body, part) in [
            ("", "not valid JSON"),
            ("[]", "expected an object"),
            ("{\"model\":\"m\",\"messages\":[{\"content\":NaN}]}", "not valid JSON"),
            (r#"{"model":"m""#, "not valid JSON"),
            (r#"{"messages":[1]}"#, "provide a model"),
            (r#"{"model":7,"messages":[1]}"#, "expected a string"),
            (r#"{"model":"a\u0000b","messages":[1]}"#, "control characters"),
            (&long, "at most 256"),
            (r#"{"model":"m"}"#, "at least one message"),
            (r#"{"model":"m","messages":[]}"#, "at least one message"),
            (r#"{"model":"m","messages":"hi"}"#, "at least one message"),
            (r#"{"model":"m","messages":[1],"n":129}"#, "between 1 and 128"),
            (r#"{"model":"m","messages":[1],"n":0}"#, "between 1 and 128"),
            (r#"{"model":"m","messages":[1],"max_tokens":0}"#, "between 1 and"),
            (r#"{"model":"m","messages":[1],"max_tokens":-1}"#, "expected"),
            (r#"{"model":"m","messages":[1],"max_tokens":99999999999999999999}"#, "between 1 and"),
            (r#"{"model":"m","messages":[1],"max_tokens":1.5}"#, "expected a whole number"),
            (r#"{"model":"m","messages":[1],"max_tokens":"5"}"#, "expected a whole number"),
            (r#"{"model":"m","messages":[1],"max_tokens":2147483648}"#, "between 1 and"),
            (r#"{"model":"m","messages":[1],"stream":"yes"}"#, "expected a boolean"),
            (r#"{"model":"m","messages":[1],"stream":true,"stream_options":7}"#, "must be an object"),
            (r#"{"model":"m","mod\u0065l":"n","messages":[1]}"#, "duplicate field `model`"),
            (&deep, "nested too deeply"),
        ] {
            let message = parse(Protocol::Chat, body).unwrap_err();
            assert!(message.contains(part), "{message} for {body:.80}");
            assert!(!message.contains("yes"), "what the client sent is not repeated");
        }
        assert!(Call::parse(Protocol::Chat, &Bytes::from_static(b"{\"model\":\"\xff\"}")).is_err());
        assert!(Call::parse(Protocol::Chat, &Bytes::from_static(b"\xef\xbb\xbf{\"model\":\"m\"}")).is_err());
    }

    #[test]
    fn estimates_are_of_text_and_not_of_bytes() {
        let tokens = |content: &str| {
            let body = format!(r#"{{"model":"m","messages":[{{"content":{content}}}]}}"#);
            parse(Protocol::Chat, &body).unwrap().prompt_tokens
        };
        assert_eq!(tokens(r#""twelve bytes""#), 3 + 3);
        assert_eq!(tokens(r#""漢字😀""#), 3 + 3);
        let image = format!(r#"[{{"image_url":{{"url":"data:image/png;base64,{}"}}}}]"#, "A".repeat(1 << 20));
        assert!((1_000..1_100).contains(&tokens(&image)));
        let sound = format!(r#"[{{"input_audio":{{"data":"{}"}}}}]"#, "A".repeat(1 << 20));
        assert!((1_000..1_100).contains(&tokens(&sound)));
        let numbers = parse(Protocol::Embeddings, r#"{"model":"m","input":[[1,2,3],[4]]}"#).unwrap();
        assert_eq!(numbers.prompt_tokens, 4);
    }

    #[test]
    fn several_answers_cost_several_times_as_much() {
        let call =
            parse(Protocol::Chat, r#"{"model":"m","messages":[1],"n":3.0,"max_completion_tokens":1e1}"#)
                .unwrap();
        assert_eq!(call.completion_limit, Some(30));
    }
}
