//! The registry: checks by name, run together, remembered for a second.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use runtime::{Lifecycle, Phase};
use serde::Serialize;
use tokio::{sync::Mutex, time::Instant};
use utoipa::ToSchema;

/// How long a result is good.
const FRESH: Duration = Duration::from_secs(1);

/// Whether the process can serve without a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Not ready without it.
    Required,
    /// Ready but degraded without it.
    Optional,
}

/// The state of a check, or of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = HealthStatus)]
pub enum Status {
    /// All is well.
    Ok,
    /// Something optional is out.
    Degraded,
    /// Something required is out.
    Error,
}

/// The result of one check.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = HealthCheck)]
pub struct CheckReport {
    /// Its state.
    pub status: Status,
    /// How long it took.
    pub duration_ms: u64,
    /// What is wrong; never holds a secret or an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The body of `/health`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Health)]
pub struct Report {
    /// The worst of the checks.
    pub status: Status,
    /// Where the process is in its life: `running`, or how far its shutdown is.
    pub phase: &'static str,
    /// Every check by name.
    pub checks: BTreeMap<String, CheckReport>,
    /// Version of the build.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime: u64,
}

type CheckFuture = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type CheckFn = Arc<dyn Fn() -> CheckFuture + Send + Sync>;

#[derive(Clone)]
struct Check {
    name: String,
    kind: Kind,
    timeout: Duration,
    run: CheckFn,
}

/// The checks of a process. Clones share everything.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    lifecycle: Lifecycle,
    version: &'static str,
    started: Instant,
    was_up: AtomicBool,
    checks: RwLock<Vec<Check>>,
    cached: Mutex<Option<(Instant, BTreeMap<String, CheckReport>)>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

impl Registry {
    /// An empty registry for a process of this version.
    pub fn new(lifecycle: Lifecycle, version: &'static str) -> Self {
        Self {
            inner: Arc::new(Inner {
                lifecycle,
                version,
                started: Instant::now(),
                was_up: AtomicBool::new(false),
                checks: RwLock::new(Vec::new()),
                cached: Mutex::new(None),
            }),
        }
    }

    /// Adds a check. It fails with a short text for the report, or when it takes longer than `timeout`. A check of the same
    /// name is replaced.
    pub fn register<F>(
        &self,
        name: impl Into<String>,
        kind: Kind,
        timeout: Duration,
        check: impl Fn() -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let name = name.into();
        let run: CheckFn = Arc::new(move || Box::pin(check()));
        let mut checks = self.inner.checks.write().unwrap_or_else(PoisonError::into_inner);
        checks.retain(|c| c.name != name);
        checks.push(Check { name, kind, timeout, run });
    }

    /// Runs what is due and reports.
    pub async fn report(&self) -> Report {
        let checks = self.results().await;
        let status = worst(checks.values().map(|c| c.status));
        if status != Status::Error && !checks.is_empty() {
            self.inner.was_up.store(true, Ordering::Relaxed);
        }
        let phase = match self.inner.lifecycle.phase() {
            Phase::Running => "running",
            Phase::Draining => "draining",
            Phase::Closing => "closing",
            Phase::LastCall | Phase::HardStop => "stopping",
        };
        let uptime = self.inner.started.elapsed().as_secs();
        Report { status, phase, checks, version: self.inner.version, uptime }
    }

    /// True when the process may have traffic.
    pub async fn is_ready(&self) -> bool {
        // Every probe also keeps the report fresh, so ask before looking at the lifecycle.
        self.report().await.status != Status::Error && self.inner.lifecycle.phase() == Phase::Running
    }

    /// True once everything required was up at the same time.
    pub async fn has_started(&self) -> bool {
        if !self.inner.was_up.load(Ordering::Relaxed) {
            self.report().await;
        }
        self.inner.was_up.load(Ordering::Relaxed)
    }

    async fn results(&self) -> BTreeMap<String, CheckReport> {
        // Held over the run: probes that arrive together share one run.
        let mut cached = self.inner.cached.lock().await;
        if let Some((at, results)) = &*cached
            && at.elapsed() < FRESH
        {
            return results.clone();
        }
        let checks = self.inner.checks.read().unwrap_or_else(PoisonError::into_inner).clone();
        let results: BTreeMap<_, _> = join_all(checks.into_iter().map(run_one)).await.into_iter().collect();
        *cached = Some((Instant::now(), results.clone()));
        results
    }
}

async fn run_one(check: Check) -> (String, CheckReport) {
    let started = Instant::now();
    let outcome = tokio::time::timeout(check.timeout, (check.run)()).await;
    let error = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some(format!("no answer within {} ms", check.timeout.as_millis())),
    };
    let status = match (&error, check.kind) {
        (None, _) => Status::Ok,
        (Some(_), Kind::Optional) => Status::Degraded,
        (Some(_), Kind::Required) => Status::Error,
    };
    metrics::gauge!("health_check_up", "check" => check.name.clone())
        .set(f64::from(u8::from(error.is_none())));
    if let Some(error) = &error {
        tracing::debug!(check = check.name, error, "health check failed");
    }
    (check.name, CheckReport { status, duration_ms: started.elapsed().as_millis() as u64, error })
}

fn worst(statuses: impl Iterator<Item = Status>) -> Status {
    statuses.fold(Status::Ok, |worst, s| match (worst, s) {
        (Status::Error, _) | (_, Status::Error) => Status::Error,
        (Status::Degraded, _) | (_, Status::Degraded) => Status::Degraded,
        _ => Status::Ok,
    })
}
