//! Log lines as JSON: one object per line, with `timestamp`, `level`, `message`, `target`, `service` and `env` at the top,
//! then the fields of the spans from the outside in, then the event's own.
//!
//! `tracing-subscriber`'s own JSON has no fixed fields and no redaction, which is why this layer exists. JSON escaping
//! neutralises CR, LF and terminal escapes; a write error (a closed pipe) is ignored, because a log line must not end
//! the process.

use std::{fmt, io::Write as _};

use chrono::{SecondsFormat, Utc};
use serde::Serializer as _;
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use crate::redact;

/// Longer strings are cut: a log line is not a place for a document.
const MAX_VALUE_CHARS: usize = 4_096;

pub(crate) struct JsonLog {
    service: &'static str,
    environment: &'static str,
    replica: Option<String>,
}

impl JsonLog {
    pub(crate) fn new(service: &'static str, environment: &'static str, replica: Option<String>) -> Self {
        Self { service, environment, replica }
    }

    fn line<S: Subscriber + for<'a> LookupSpan<'a>>(
        &self,
        event: &Event<'_>,
        ctx: &Context<'_, S>,
    ) -> Vec<u8> {
        let meta = event.metadata();
        let mut fields = Fields::default();
        if let Some(scope) = ctx.event_scope(event) {
            for span in scope.from_root() {
                if let Some(of_span) = span.extensions().get::<Fields>() {
                    fields.0.extend(of_span.0.clone());
                }
            }
        }
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_else(|| Value::from(meta.name()));
        let mut out: Vec<(&str, Value)> = vec![
            ("timestamp", now().into()),
            ("level", meta.level().as_str().to_ascii_lowercase().into()),
            ("message", message),
            ("service", self.service.into()),
            ("env", self.environment.into()),
            ("target", meta.target().into()),
        ];
        if let Some(replica) = &self.replica {
            out.push(("replica", replica.as_str().into()));
        }
        let fixed = out.len();
        for (key, value) in &fields.0 {
            // A field may not pretend to be one of ours.
            if !out[..fixed].iter().any(|(name, _)| name == key) {
                out.push((key, value.clone()));
            }
        }
        let mut line = Vec::with_capacity(256);
        let mut serializer = serde_json::Serializer::new(&mut line);
        let _ = serializer.collect_map(out);
        line.push(b'\n');
        line
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a log line carries the wall clock's time, not the test clock's"
)]
fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLog {
    fn on_new_span(&self, attrs: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let mut fields = Fields::default();
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

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let value = if redact::is_sensitive(field.name()) { Value::from(redact::REDACTED) } else { value };
        self.0.insert(field.name().to_owned(), value);
    }

    fn put_text(&mut self, field: &Field, text: &str) {
        let clean = redact::text(text);
        let cut = match clean.char_indices().nth(MAX_VALUE_CHARS) {
            Some((at, _)) => format!("{}…", &clean[..at]),
            None => clean.into_owned(),
        };
        self.put(field, cut.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, &format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
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
