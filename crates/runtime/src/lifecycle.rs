//! The life of a process: what runs, when it must stop, and what its end means.
//!
//! A process goes through [`Phase`]s, one way only:
//!
//! ```text
//! Running --SIGTERM--> Draining --delay--> Closing --grace--> LastCall --budget--> HardStop
//!                      readiness off       no new work        say goodbye          cut
//! ```
//!
//! - *Draining*: readiness answers 503 so that balancers look elsewhere; everything still works.
//! - *Closing*: the listener closes, the worker claims nothing new; what runs goes on.
//! - *LastCall*: streams send their final event, jobs are cancelled and handed back.
//! - *HardStop*: what still runs is dropped. A second signal comes straight here.
//!
//! This is the only module of the project that spawns: `clippy.toml` bans `tokio::spawn` elsewhere, because a task that
//! nobody waits for is lost at shutdown, and one that dies in silence is worse.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use config::ShutdownConfig;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Readiness is off.
    Draining,
    /// No new work.
    Closing,
    /// Say goodbye and end.
    LastCall,
    /// Whatever still runs is cut.
    HardStop,
}

/// A handle on the life of this process; clones are cheap and mean the same life.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    draining: CancellationToken,
    closing: CancellationToken,
    last_call: CancellationToken,
    hard_stop: CancellationToken,
    tasks: TaskTracker,
    failure: Mutex<Option<&'static str>>,
    forced: AtomicBool,
    times: ShutdownConfig,
}

impl Lifecycle {
    /// A life that has just begun.
    pub fn new(times: ShutdownConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                draining: CancellationToken::new(),
                closing: CancellationToken::new(),
                last_call: CancellationToken::new(),
                hard_stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
                failure: Mutex::new(None),
                forced: AtomicBool::new(false),
                times,
            }),
        }
    }

    /// Where the process is now.
    pub fn phase(&self) -> Phase {
        let reached = |token: &CancellationToken| token.is_cancelled();
        let i = &self.inner;
        match () {
            () if reached(&i.hard_stop) => Phase::HardStop,
            () if reached(&i.last_call) => Phase::LastCall,
            () if reached(&i.closing) => Phase::Closing,
            () if reached(&i.draining) => Phase::Draining,
            () => Phase::Running,
        }
    }

    /// Ends when the process has reached `phase` (at once if it has already).
    pub async fn reached(&self, phase: Phase) {
        if let Some(token) = self.token(phase) {
            token.cancelled().await;
        }
    }

    /// The token behind [`Self::reached`], for code that selects on many; `None` for [`Phase::Running`].
    pub fn token(&self, phase: Phase) -> Option<&CancellationToken> {
        match phase {
            Phase::Running => None,
            Phase::Draining => Some(&self.inner.draining),
            Phase::Closing => Some(&self.inner.closing),
            Phase::LastCall => Some(&self.inner.last_call),
            Phase::HardStop => Some(&self.inner.hard_stop),
        }
    }

    /// Starts a background task that the process cannot live without. When it ends before the shutdown began, whether
    /// by return or by panic, the process is shut down and exits non-zero: a worker whose claim loop died must be
    /// replaced, not kept.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let lifecycle = self.clone();
        let watched = self.spawn_task(task.instrument(tracing::info_span!("task", name)));
        self.inner.tasks.spawn(async move {
            let outcome = watched.await;
            if lifecycle.phase() < Phase::Closing {
                let panicked = outcome.as_ref().is_err_and(tokio::task::JoinError::is_panic);
                tracing::error!(task = name, panicked, "a background task ended by itself; shutting down");
                lifecycle.fail(name);
            }
        });
    }

    /// Starts a task that may end at any time, such as a connection or a job. The shutdown waits for it.
    pub fn spawn_task<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.inner.tasks.spawn(task)
    }

    /// Runs blocking or CPU-bound code on the blocking pool. The shutdown waits for it.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.inner.tasks.spawn_blocking(work)
    }

    /// Begins the shutdown, as SIGTERM does.
    pub fn begin_shutdown(&self) {
        self.inner.draining.cancel();
    }

    /// Begins the shutdown without the delay for balancers: nobody was sent here yet.
    pub fn give_up(&self) {
        self.inner.draining.cancel();
        self.inner.closing.cancel();
    }

    /// How many tasks run.
    pub fn tasks(&self) -> usize {
        self.inner.tasks.len()
    }

    /// Shuts the process down because something it cannot live without is gone; the process exits non-zero.
    pub fn fail(&self, task: &'static str) {
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(task);
        self.begin_shutdown();
    }

    /// True after [`Self::stop_now`].
    pub fn was_forced(&self) -> bool {
        self.inner.forced.load(Ordering::Relaxed)
    }

    /// The first critical task that died, if one did.
    pub fn failed_task(&self) -> Option<&'static str> {
        *self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the begin of the shutdown, then walks through its phases. Returns when every task has ended or the
    /// budget is spent; the number is of the tasks that had to be cut.
    pub async fn run_until_stopped(&self) -> usize {
        self.reached(Phase::Draining).await;
        let i = &self.inner;
        let started = tokio::time::Instant::now();
        let budget = i.times.budget;
        i.tasks.close();
        // The goodbye needs time of its own: a fifth of the budget, at most five seconds.
        let goodbye = (budget / 5).min(Duration::from_secs(5));
        let steps = [
            (i.times.delay, &i.closing),
            (budget.saturating_sub(goodbye).max(i.times.delay), &i.last_call),
            (budget, &i.hard_stop),
        ];
        for (at, token) in steps {
            tokio::select! {
                // Tasks that end before the listener closes must not end the delay: clients are still being sent here.
                () = i.tasks.wait(), if i.closing.is_cancelled() => break,
                () = i.hard_stop.cancelled() => break,
                () = token.cancelled() => {}
                () = tokio::time::sleep_until(started + at) => {}
            }
            token.cancel();
        }
        for token in [&i.closing, &i.last_call, &i.hard_stop] {
            if i.tasks.is_empty() || i.hard_stop.is_cancelled() {
                token.cancel();
            }
        }
        // What selects on the hard stop gets a moment to do so.
        let _ = tokio::time::timeout(Duration::from_millis(200), i.tasks.wait()).await;
        i.tasks.len()
    }

    /// Cuts everything now, as a second signal does.
    pub fn stop_now(&self) {
        self.inner.forced.store(true, Ordering::Relaxed);
        self.inner.draining.cancel();
        self.inner.hard_stop.cancel();
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn lifecycle(delay_ms: u64, budget_ms: u64) -> Lifecycle {
        let ms = Duration::from_millis;
        Lifecycle::new(ShutdownConfig { delay: ms(delay_ms), budget: ms(budget_ms) })
    }

    #[tokio::test(start_paused = true)]
    async fn the_phases_come_in_order_and_the_budget_is_kept() {
        let life = lifecycle(1_000, 20_000);
        let (log, seen) = tokio::sync::mpsc::unbounded_channel();
        for phase in [Phase::LastCall, Phase::Draining, Phase::HardStop, Phase::Closing] {
            let (l, log) = (life.clone(), log.clone());
            life.spawn_task(async move {
                l.reached(phase).await;
                log.send(phase).unwrap();
                l.reached(Phase::HardStop).await;
            });
        }
        life.spawn_task(std::future::pending::<()>());
        let start = tokio::time::Instant::now();
        life.begin_shutdown();
        let cut = life.run_until_stopped().await;
        assert_eq!(cut, 1, "the task that never ends is cut");
        assert!(start.elapsed() <= Duration::from_millis(20_500));
        drop(log);
        let order: Vec<Phase> = std::iter::from_fn({
            let mut seen = seen;
            move || seen.try_recv().ok()
        })
        .collect();
        assert_eq!(order, [Phase::Draining, Phase::Closing, Phase::LastCall, Phase::HardStop]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_process_stops_right_after_the_delay() {
        let life = lifecycle(2_000, 45_000);
        let l = life.clone();
        life.spawn("server", async move { l.reached(Phase::Closing).await });
        let start = tokio::time::Instant::now();
        life.begin_shutdown();
        assert_eq!(life.run_until_stopped().await, 0);
        assert!((2_000..4_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        assert_eq!(life.failed_task(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_critical_task_that_returns_or_panics_fails_the_process() {
        for panics in [false, true] {
            let life = lifecycle(0, 1_000);
            life.spawn("claim loop", async move { assert!(!panics, "on purpose") });
            life.run_until_stopped().await;
            assert_eq!(life.failed_task(), Some("claim loop"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_cuts_at_once() {
        let life = lifecycle(5_000, 45_000);
        life.spawn_task(std::future::pending::<()>());
        life.begin_shutdown();
        life.stop_now();
        let start = tokio::time::Instant::now();
        assert_eq!(life.run_until_stopped().await, 1);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
