//! `/control`: defaults for all following requests, set at run time, and the counters.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Fault;
use crate::error::{ApiError, parse_json};
use crate::plan::{Plan, SETTINGS};
use crate::stats::{Cancellation, Phase, Stats};

/// The defaults that are in force.
#[derive(Debug)]
pub(crate) struct Control {
    defaults: Mutex<Defaults>,
    /// Until when connections are refused.
    refusal: watch::Sender<Option<Instant>>,
}

#[derive(Debug, Clone, Default)]
struct Defaults {
    pairs: Vec<(String, String)>,
    /// For how many more requests; `None`: until they are cleared.
    times: Option<u64>,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self { defaults: Mutex::default(), refusal: watch::Sender::new(None) }
    }

    /// Replaces the defaults. `scratch` is a plan to check the settings with. Besides the settings there is `times`: forget the
    /// defaults after so many requests.
    pub(crate) fn set(&self, pairs: Vec<(String, String)>, mut scratch: Plan) -> Result<(), String> {
        let mut defaults = Defaults::default();
        let mut refusal = None;
        for (name, value) in pairs {
            if name == "times" {
                defaults.times = Some(value.parse().map_err(|_| "times must be a number".to_owned())?);
                continue;
            }
            scratch.set(&name, &value)?;
            match (name.as_str(), &scratch.fault) {
                ("fault", Some(Fault::Refuse(duration))) => refusal = Some(*duration),
                _ => defaults.pairs.push((name, value)),
            }
        }
        *self.lock() = defaults;
        self.refusal.send_replace(refusal.map(|duration| Instant::now() + duration));
        Ok(())
    }

    pub(crate) fn clear(&self) {
        *self.lock() = Defaults::default();
        self.refusal.send_replace(None);
    }

    /// Applies the defaults to one request's plan, and counts it.
    pub(crate) fn apply(&self, plan: &mut Plan) -> Result<(), String> {
        let mut defaults = self.lock();
        match &mut defaults.times {
            Some(0) => return Ok(()),
            Some(times) => *times -= 1,
            None => {}
        }
        defaults.pairs.iter().try_for_each(|(name, value)| plan.set(name, value))
    }

    /// Waits until connections are to be refused.
    pub(crate) async fn refusal(&self) {
        let mut changes = self.refusal.subscribe();
        // The sender lives in self: waiting cannot fail.
        let _ = changes.wait_for(Option::is_some).await;
    }

    /// Waits until connections are to be accepted again.
    pub(crate) async fn refusal_over(&self) {
        let mut changes = self.refusal.subscribe();
        loop {
            let Some(until) = *changes.borrow_and_update() else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    self.refusal.send_replace(None);
                    return;
                }
                _ = changes.changed() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Defaults> {
        self.defaults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the route: GET shows, POST replaces the defaults, DELETE clears them.
pub(crate) fn handle(
    control: &Control,
    scratch: Plan,
    stats: &Stats,
    method: &Method,
    body: &[u8],
) -> Result<Value, ApiError> {
    match *method {
        Method::GET => {}
        Method::DELETE => control.clear(),
        Method::POST => {
            let settings: Map<String, Value> = parse_json(body)?;
            let pairs = settings.into_iter().map(|(name, value)| match value {
                Value::String(text) => (name, text),
                other => (name, other.to_string()),
            });
            control.set(pairs.collect(), scratch).map_err(ApiError::bad_request)?;
        }
        _ => return Err(ApiError::new(http::StatusCode::METHOD_NOT_ALLOWED, "use GET, POST or DELETE")),
    }
    let defaults = control.lock().clone();
    Ok(json!({
        "simulation": true,
        "defaults": defaults.pairs.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "times": defaults.times,
        "stats": stats_json(stats),
        "settings": SETTINGS.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "faults": Fault::known().collect::<Vec<_>>(),
    }))
}

fn stats_json(stats: &Stats) -> Value {
    let last_request = stats.last_request.as_ref().map(|request| {
        let headers: Vec<(&str, String)> = request
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let body = String::from_utf8_lossy(&request.body);
        json!({"method": request.method, "uri": request.uri, "headers": headers, "body": body})
    });
    json!({
        "connections_open": stats.connections_open,
        "connections_total": stats.connections_total,
        "requests_open": stats.requests_open,
        "requests_total": stats.requests_total,
        "completed": stats.completed,
        "cancelled": stats.cancelled,
        "faulted": stats.faulted,
        "cancellations": stats.cancellations.iter().map(cancellation_json).collect::<Vec<_>>(),
        "last_request": last_request,
    })
}

fn cancellation_json(cancellation: &Cancellation) -> Value {
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    json!({
        "path": cancellation.path,
        "phase": match cancellation.phase {
            Phase::BeforeHeaders => "before-headers",
            Phase::Streaming => "streaming",
        },
        "chunks": cancellation.chunks,
        "after_ms": millis(cancellation.after),
        "ago_ms": millis(cancellation.at.elapsed()),
    })
}
