//! Logs, metrics, traces and error reports, started in sync code before the async runtime exists: Sentry's hub is per
//! thread and must be there before the worker threads, and both exporters bring a thread of their own.

use std::{backtrace::BacktraceStatus, io::IsTerminal as _, time::Duration};

use config::{Environment, LogFormat, RuntimeConfig, TelemetryConfig};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use secrecy::ExposeSecret as _;
use sentry::{
    integrations::tracing::{BreadcrumbLayer, ErrorLayer, SpanLayer},
    protocol::{Event, Value},
};
use tracing_subscriber::{
    EnvFilter, Layer, filter::LevelFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::{json_log::JsonLog, process, redact};

/// Upper bounds of latency histograms, in seconds. A quantile is interpolated between two of them, so the bound of an alert has to be
/// one.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0, 60.0];
/// Upper bounds of histograms of tokens, as OpenTelemetry advises for `gen_ai.client.token.usage`.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// At the end, for what is still on its way to Sentry or the collector.
const FLUSH: Duration = Duration::from_secs(2);

/// Renders the process's metrics.
#[derive(Clone)]
pub struct MetricsHandle(PrometheusHandle);

impl std::fmt::Debug for MetricsHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MetricsHandle")
    }
}

impl MetricsHandle {
    /// All metrics in the Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        process::measure();
        self.0.render()
    }

    /// Must run now and then, or histograms grow for ever.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }

    /// A recorder that is not installed anywhere, for tests that run many routers in one process.
    pub fn detached() -> Self {
        Self(PrometheusBuilder::new().build_recorder().handle())
    }
}

/// Keeps telemetry alive; [`Telemetry::flush`] sends what is left.
pub struct Telemetry {
    metrics: MetricsHandle,
    tracer: Option<SdkTracerProvider>,
    sentry: Option<sentry::ClientInitGuard>,
}

impl Telemetry {
    /// Starts everything that is configured. Call once, at the start of `main`.
    pub fn start(service: &'static str, config: &RuntimeConfig) -> Self {
        crate::install_crypto_provider();
        redact::learn(config::secrets(&config::EnvVars));
        let sentry = start_sentry(service, config.environment, &config.telemetry);
        let tracer = start_otlp(service, config.environment, &config.telemetry);
        start_logs(service, config.environment, &config.telemetry, sentry.is_some(), tracer.as_ref());
        log_panics();
        Self { metrics: start_metrics(service), tracer, sentry }
    }

    /// The metrics of this process.
    pub fn metrics(&self) -> MetricsHandle {
        self.metrics.clone()
    }

    /// Sends what is left, for at most two seconds.
    pub fn flush(self) {
        let Self { tracer, sentry, .. } = self;
        // On threads that nobody joins: Sentry's transport waits for a request under way however long that takes, and an
        // exporter may do the same. The process ends without them.
        let (done, flushed) = std::sync::mpsc::channel();
        let also_done = done.clone();
        std::thread::spawn(move || {
            let sent = tracer.is_none_or(|tracer| tracer.shutdown_with_timeout(FLUSH).is_ok());
            let _ = also_done.send(sent);
        });
        std::thread::spawn(move || {
            // Told before the client is dropped, which is what may hang.
            let sent = sentry.as_ref().is_none_or(|guard| guard.flush(Some(FLUSH)));
            let _ = done.send(sent);
            drop(sentry);
        });
        let until = std::time::Instant::now() + FLUSH;
        for _ in 0..2 {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if !flushed.recv_timeout(left).unwrap_or(false) {
                tracing::warn!("error reports or traces were lost at the end");
            }
        }
    }
}

fn start_logs(
    service: &'static str,
    environment: Environment,
    config: &TelemetryConfig,
    with_sentry: bool,
    tracer: Option<&SdkTracerProvider>,
) {
    // The scheduler tells its inner life at info. What comes later in the list wins, so this can be overruled.
    let directives = format!("tokio_cron_scheduler=warn,{}", config.log_filter);
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = (config.log_format == LogFormat::Json)
        .then(|| JsonLog::new(service, environment.as_str(), config.replica.clone()));
    let pretty = (config.log_format == LogFormat::Pretty).then(|| {
        tracing_subscriber::fmt::layer()
            .compact()
            .with_target(false)
            // It would tell standard error that standard output is closed, and panic where that is closed too.
            .log_internal_errors(false)
            .with_ansi(std::io::stdout().is_terminal())
    });
    // One Sentry event per logged error, with what was logged before it as breadcrumbs.
    let sentry_errors = with_sentry.then(|| ErrorLayer::new().with_filter(LevelFilter::ERROR));
    let sentry_breadcrumbs = with_sentry.then(|| BreadcrumbLayer::new().with_filter(LevelFilter::INFO));
    let sentry_spans = with_sentry.then(|| SpanLayer::new().with_filter(LevelFilter::INFO));
    let otlp = tracer.map(|t| {
        tracing_opentelemetry::layer().with_tracer(t.tracer(service)).with_filter(LevelFilter::INFO)
    });
    // A second start (tests in one process) keeps the first subscriber.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(json)
        .with(pretty)
        .with(sentry_breadcrumbs)
        .with(sentry_errors)
        .with(sentry_spans)
        .with(otlp)
        .try_init();
}

/// A panic is an error like any other: one log line with the fields of the request or job in which it happened, secrets
/// removed, and so one Sentry event. Sentry's own hook sends while the thread waits, and the error would be told twice.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        tracing::error!(panic = text, location, backtrace, "panicked");
    }));
}

fn start_metrics(service: &'static str) -> MetricsHandle {
    let builder = PrometheusBuilder::new()
        .add_global_label("service", service)
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_token_usage".to_owned()), &TOKENS)
        })
        .expect("the buckets are not empty");
    let recorder = builder.build_recorder();
    let handle = MetricsHandle(recorder.handle());
    // A second start in one process keeps the first recorder.
    let _ = metrics::set_global_recorder(recorder);
    metrics::gauge!("build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    handle
}

fn start_otlp(
    service: &'static str,
    environment: Environment,
    config: &TelemetryConfig,
) -> Option<SdkTracerProvider> {
    let endpoint = config.otlp_endpoint.as_ref()?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/')))
        .with_timeout(Duration::from_secs(5))
        .build()
        .inspect_err(|error| report_early(&format!("traces are off, the exporter does not start: {error}")))
        .ok()?;
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("deployment.environment.name", environment.as_str()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    // By the trace's id and not by the parent's flag: the parent may be a client, who would decide what we pay for.
    let sampler = Sampler::TraceIdRatioBased(config.traces_sample_rate);
    Some(
        SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .with_sampler(sampler)
            .build(),
    )
}

/// Before logs exist there is only stderr.
#[expect(clippy::print_stderr, reason = "no log exists yet")]
fn report_early(message: &str) {
    eprintln!("{message}");
}

fn start_sentry(
    service: &'static str,
    environment: Environment,
    config: &TelemetryConfig,
) -> Option<sentry::ClientInitGuard> {
    let dsn = config.sentry_dsn.as_ref()?;
    let mut options = sentry::ClientOptions::new()
        .dsn(dsn.expose_secret())
        .environment(environment.as_str())
        .release(config.release.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()))
        .traces_sample_rate(config.traces_sample_rate as f32)
        .send_default_pii(false)
        .attach_stacktrace(true)
        .shutdown_timeout(FLUSH)
        .before_send(|event| Some(scrub(event)));
    if let Some(replica) = &config.replica {
        options = options.server_name(replica.clone());
    }
    let guard = sentry::init(options);
    sentry::configure_scope(|scope| scope.set_tag("service", service));
    Some(guard)
}

/// Takes everything out of an event that could be a secret or tell who a user is.
fn scrub(mut event: Event<'static>) -> Event<'static> {
    event.user = None;
    event.request = None;
    if let Some(message) = &mut event.message {
        *message = redact::text(message).into_owned();
    }
    for exception in &mut event.exception.values {
        if let Some(value) = &mut exception.value {
            *value = redact::text(value).into_owned();
        }
    }
    for (key, value) in &mut event.extra {
        scrub_value(key, value);
    }
    for context in event.contexts.values_mut() {
        if let sentry::protocol::Context::Other(fields) = context {
            for (key, value) in fields.iter_mut() {
                scrub_value(key, value);
            }
        }
    }
    for breadcrumb in &mut event.breadcrumbs.values {
        if let Some(message) = &mut breadcrumb.message {
            *message = redact::text(message).into_owned();
        }
        for (key, value) in &mut breadcrumb.data {
            scrub_value(key, value);
        }
    }
    event
}

fn scrub_value(key: &str, value: &mut Value) {
    match value {
        _ if redact::is_sensitive(key) => *value = Value::from(redact::REDACTED),
        Value::String(text) => *text = redact::text(text).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(|v| scrub_value(key, v)),
        Value::Object(fields) => fields.iter_mut().for_each(|(k, v)| scrub_value(k, v)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fmt::Write as _,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// Fields of events, as text.
    #[derive(Clone, Default)]
    struct Events(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Events {
        fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            let mut text = event.metadata().level().to_string();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                let _ = write!(text, " {field}={value:?}");
            });
            self.0.lock().unwrap().push(text);
        }
    }

    #[test]
    fn a_panic_is_one_error_in_the_log() {
        let events = Events::default();
        let subscriber = tracing_subscriber::registry().with(events.clone());
        tracing::subscriber::with_default(subscriber, || {
            log_panics();
            let _ = std::panic::catch_unwind(|| panic!("out of {}", "order"));
            let _ = std::panic::take_hook();
        });
        let events = events.0.lock().unwrap();
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert!(event.starts_with("ERROR"), "{event}");
        assert!(event.contains("out of order") && event.contains("telemetry.rs:"), "{event}");
    }

    #[test]
    fn nothing_secret_reaches_sentry() {
        let canary = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl";
        let mut event = Event { message: Some(format!("refused {canary}")), ..Event::default() };
        event.user = Some(sentry::User { email: Some("canary@example.com".into()), ..Default::default() });
        event.extra.insert("password".into(), "canary".into());
        event.extra.insert(
            "nested".into(),
            serde_json::json!({"headers": {"Authorization": "canary"}, "note": canary}),
        );
        event.contexts.insert(
            "Rust Tracing Fields".into(),
            sentry::protocol::Context::Other([("api_key".to_owned(), "canary".into())].into()),
        );
        event.exception.values.push(sentry::protocol::Exception {
            value: Some("postgres://u:canary@db/x".into()),
            ..Default::default()
        });
        event.breadcrumbs.values.push(sentry::Breadcrumb {
            message: Some(canary.into()),
            data: [("token".to_owned(), "canary".into())].into(),
            ..Default::default()
        });
        let sent = serde_json::to_string(&scrub(event)).expect("events serialise");
        assert!(!sent.contains("canary") && !sent.contains("eyJ"), "{sent}");
        assert!(sent.contains(redact::REDACTED));
    }
}
