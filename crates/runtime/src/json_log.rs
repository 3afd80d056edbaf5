//! Log lines as JSON: one object per line, with `timestamp`, `level`, `message`, `service`, `env` and `target` at the top, then
//! the event's own fields, then those of its spans from the inside out; of two of the same name the inner one counts.
//!
//! `tracing-subscriber`'s own JSON has no fixed fields and no redaction, which is why this layer exists. JSON escaping
//! neutralises CR, LF and terminal escapes; a write error (a closed pipe) is ignored, because a log line must not end
//! the process.
//!
//! There is a line for every request, so values are encoded once, when they are recorded, and then copied.

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
    io::Write as _,
    ops::Range,
};

use chrono::Utc;
use serde::Serialize;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use crate::redact;

/// Longer strings are cut: a log line is not a place for a document.
const MAX_VALUE_CHARS: usize = 4_096;
/// Ours. A field may not pretend to be one of them.
const FIXED: [&str; 7] = ["timestamp", "level", "message", "service", "env", "target", "replica"];

pub(crate) struct JsonLog {
    /// What is the same in every line, encoded.
    process: String,
}

impl JsonLog {
    pub(crate) fn new(service: &'static str, environment: &'static str, replica: Option<String>) -> Self {
        let mut process = format!(r#","service":{},"env":{}"#, encode(service), encode(environment));
        if let Some(replica) = replica {
            process += r#","replica":"#;
            process += &encode(&replica);
        }
        Self { process }
    }

    fn line<S: Subscriber + for<'a> LookupSpan<'a>>(
        &self,
        event: &Event<'_>,
        ctx: &Context<'_, S>,
    ) -> Vec<u8> {
        let meta = event.metadata();
        let mut own = Fields::new();
        event.record(&mut own);
        let mut line = Vec::with_capacity(1_024);
        line.extend_from_slice(br#"{"timestamp":""#);
        push_now(&mut line);
        line.extend_from_slice(br#"","level":""#);
        line.extend_from_slice(level(*meta.level()).as_bytes());
        line.extend_from_slice(br#"","message":"#);
        match own.find("message") {
            Some(message) => line.extend_from_slice(message),
            None => push(&mut line, meta.name()),
        }
        line.extend_from_slice(self.process.as_bytes());
        line.extend_from_slice(br#","target":"#);
        push(&mut line, meta.target());
        let mut written: Vec<&'static str> = Vec::with_capacity(16);
        own.write(&mut line, &mut written);
        for span in ctx.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.write(&mut line, &mut written);
            }
        }
        line.extend_from_slice(b"}\n");
        line
    }
}

fn encode(value: &str) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// Adds a value as JSON. Keys of maps are strings here, so it cannot fail.
fn push<T: Serialize + ?Sized>(text: &mut Vec<u8>, value: &T) {
    let _ = serde_json::to_writer(text, value);
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a log line carries the wall clock's time, not the test clock's"
)]
fn push_now(line: &mut Vec<u8>) {
    let now = Utc::now();
    // What the seconds look like is the same for all lines of a second.
    thread_local! {
        static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let seconds = || now.format("%Y-%m-%dT%H:%M:%S.").to_string();
    let kept = SECOND.try_with(|kept| {
        let (second, text) = &mut *kept.borrow_mut();
        if *second != now.timestamp() {
            (*second, *text) = (now.timestamp(), seconds());
        }
        line.extend_from_slice(text.as_bytes());
    });
    // While the thread's own memory is taken down there is nothing to keep it in.
    if kept.is_err() {
        line.extend_from_slice(seconds().as_bytes());
    }
    let _ = write!(line, "{:03}Z", now.timestamp_subsec_millis().min(999));
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLog {
    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Fields::new();
        attrs.record(&mut fields);
        span.extensions_mut().replace(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let line = self.line(event, &ctx);
        // One write per line, so that lines of several threads do not mix.
        let _ = std::io::stdout().lock().write_all(&line);
    }
}

/// Names with their values, which are encoded already and stand one after the other.
struct Fields {
    text: Vec<u8>,
    places: Vec<(&'static str, Range<usize>)>,
}

impl Fields {
    /// With room for those of a request, so that they do not grow piece by piece.
    fn new() -> Self {
        Self { text: Vec::with_capacity(256), places: Vec::with_capacity(8) }
    }

    fn find(&self, name: &str) -> Option<&[u8]> {
        self.places.iter().find(|(known, _)| *known == name).map(|(_, place)| &self.text[place.clone()])
    }

    /// Those whose names are not in `written` yet.
    fn write(&self, line: &mut Vec<u8>, written: &mut Vec<&'static str>) {
        for (name, place) in &self.places {
            if written.contains(name) || FIXED.contains(name) {
                continue;
            }
            written.push(name);
            line.push(b',');
            push(line, *name);
            line.push(b':');
            line.extend_from_slice(&self.text[place.clone()]);
        }
    }

    fn put<T: Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        let name = field.name();
        let start = self.text.len();
        if redact::is_sensitive_name(name) {
            push(&mut self.text, redact::REDACTED);
        } else {
            push(&mut self.text, value);
        }
        let place = start..self.text.len();
        match self.places.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = place,
            None => self.places.push((name, place)),
        }
    }

    fn put_text(&mut self, field: &Field, text: &str) {
        let clean = redact::text(text);
        // No character is shorter than a byte.
        let end =
            (clean.len() > MAX_VALUE_CHARS).then(|| clean.char_indices().nth(MAX_VALUE_CHARS)).flatten();
        match end {
            Some((at, _)) => self.put(field, &format!("{}…", &clean[..at])),
            None => self.put(field, clean.as_ref()),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Most values are ids: room for one saves growing four times, on every request.
        let mut text = String::with_capacity(64);
        let _ = write!(text, "{value:?}");
        self.put_text(field, &text);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, &value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value);
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        // The whole chain on one line: Display of our errors does not repeat its source.
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        self.put_text(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Keeps the lines instead of writing them.
    struct Kept(JsonLog, Arc<Mutex<String>>);

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Kept {
        fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
            self.0.on_new_span(attrs, id, ctx);
        }
        fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
            self.0.on_record(id, values, ctx);
        }
        fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
            let line = String::from_utf8(self.0.line(event, &ctx)).expect("JSON is UTF-8");
            *self.1.lock().expect("no panic before") += &line;
        }
    }

    fn logged(log: impl FnOnce()) -> Vec<Value> {
        let kept = Arc::<Mutex<String>>::default();
        let layer = Kept(JsonLog::new("api", "test", Some("r\"1".to_owned())), kept.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let lines = kept.lock().expect("no panic before");
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    #[test]
    fn a_line_has_its_fixed_fields_its_own_and_those_of_its_spans() {
        let lines = logged(|| {
            let outer = tracing::info_span!(
                "request",
                request_id = "abc",
                depth = 1,
                user_id = tracing::field::Empty
            );
            outer.record("user_id", 7);
            let _outer = outer.enter();
            let _inner = tracing::info_span!("query", depth = 2, ok = true).entered();
            tracing::warn!(took = 1.5, request_id = "own", "slow \u{1b}[31m\r\nquery");
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let wanted = serde_json::json!({
            "timestamp": line["timestamp"], "level": "warn", "message": "slow \u{1b}[31m\r\nquery", "service": "api",
            "env": "test", "replica": "r\"1", "target": "runtime::json_log::tests", "took": 1.5, "request_id": "own",
            "depth": 2, "ok": true, "user_id": 7,
        });
        assert_eq!(line, &wanted);
    }

    #[test]
    fn no_field_pretends_to_be_a_fixed_one_no_secret_passes_and_long_texts_are_cut() {
        let lines = logged(|| {
            let long = "ä".repeat(5_000);
            tracing::info!(
                level = "fatal",
                env = "production",
                refresh_token = "x",
                long,
                nan = f64::NAN,
                "m"
            );
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!((&line["level"], &line["env"]), (&Value::from("info"), &Value::from("test")));
        assert_eq!(line["refresh_token"], redact::REDACTED);
        assert_eq!(line["long"].as_str().map(|text| text.chars().count()), Some(MAX_VALUE_CHARS + 1));
        assert_eq!(line["nan"], Value::Null);
    }
}
