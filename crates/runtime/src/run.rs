//! One wrapper around every role: runtime, signals, shutdown, exit code.

use std::{fmt::Display, process::ExitCode, time::Duration};

use config::ShutdownConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Lifecycle, Telemetry};

/// Runs a role until it is told to stop, and turns its end into an exit code: 0 after a clean shutdown, 1 when the role
/// could not start, a background task died, or a second signal cut the shutdown short.
///
/// `start` brings everything up and returns; what it spawned on the [`Lifecycle`] keeps the process going.
pub fn run<E: Display>(
    shutdown: ShutdownConfig,
    telemetry: Telemetry,
    start: impl AsyncFnOnce(Lifecycle) -> Result<(), E>,
) -> ExitCode {
    crate::install_crypto_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the async runtime does not start");
            return ExitCode::FAILURE;
        }
    };
    let lifecycle = Lifecycle::new(shutdown);
    let code = runtime.block_on(supervise(lifecycle, start));
    // Blocking threads that hang must not hold the exit up.
    runtime.shutdown_timeout(Duration::from_millis(300));
    telemetry.flush();
    code
}

async fn supervise<E: Display>(
    lifecycle: Lifecycle,
    start: impl AsyncFnOnce(Lifecycle) -> Result<(), E>,
) -> ExitCode {
    let watcher = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(int)) => lifecycle.spawn_watcher(term, int),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signals cannot be handled");
            return ExitCode::FAILURE;
        }
    };
    // A signal during the start ends it too: nobody waits for a database that never comes.
    let started = tokio::select! {
        started = start(lifecycle.clone()) => started,
        () = lifecycle.reached(crate::Phase::Draining) => Ok(()),
    };
    if let Err(error) = &started {
        tracing::error!(error = %format_args!("{error:#}"), "the start failed");
        lifecycle.give_up();
    }
    let cut = lifecycle.run_until_stopped().await;
    watcher.abort();
    match lifecycle.failed_task() {
        _ if lifecycle.was_forced() => tracing::warn!(cut, "stopped by a second signal"),
        Some(task) => tracing::error!(task, cut, "stopped because a background task died"),
        None if cut > 0 => tracing::warn!(cut, "stopped; some tasks were cut at the deadline"),
        None => tracing::info!("stopped"),
    }
    if started.is_err() || lifecycle.failed_task().is_some() || lifecycle.was_forced() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

impl Lifecycle {
    #[expect(clippy::disallowed_methods, reason = "must not be tracked: it ends after every other task")]
    fn spawn_watcher(&self, mut term: Signal, mut int: Signal) -> tokio::task::JoinHandle<()> {
        let lifecycle = self.clone();
        tokio::spawn(async move {
            for count in 0_u32.. {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                };
                if count == 0 {
                    tracing::info!(signal = name, "shutting down");
                    lifecycle.begin_shutdown();
                } else {
                    tracing::warn!(signal = name, "second signal: stopping now");
                    lifecycle.stop_now();
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn life() -> Lifecycle {
        Lifecycle::new(ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(10) })
    }

    #[tokio::test]
    async fn a_role_whose_runner_ends_or_panics_exits_with_a_failure_and_one_that_is_told_to_stop_does_not() {
        let ended = supervise(life(), async |life: Lifecycle| {
            life.spawn("runner", async {});
            Ok::<_, Infallible>(())
        });
        assert_eq!(ended.await, ExitCode::FAILURE);
        let panicked = supervise(life(), async |life: Lifecycle| {
            life.spawn("runner", async { panic!("on purpose") });
            Ok::<_, Infallible>(())
        });
        assert_eq!(panicked.await, ExitCode::FAILURE);
        let refused = supervise(life(), async |_| Err("the port is taken"));
        assert_eq!(refused.await, ExitCode::FAILURE);
        let told = supervise(life(), async |life: Lifecycle| {
            let stopping = life.clone();
            life.spawn("runner", async move { stopping.reached(crate::Phase::Closing).await });
            life.begin_shutdown();
            Ok::<_, Infallible>(())
        });
        assert_eq!(told.await, ExitCode::SUCCESS);
    }
}
