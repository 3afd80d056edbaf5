//! Ctrl-C and its relatives. The first asks to stop in order, the second Ctrl-C (or SIGTERM) to stop at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static STOPS: AtomicUsize = AtomicUsize::new(0);
static HANGUP: AtomicBool = AtomicBool::new(false);

/// The command was ended by a signal.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process. A detached stack ignores SIGHUP: it has
/// no terminal whose closing would concern it.
pub(crate) fn listen(detached: bool) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen for signals")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // A closing terminal sends SIGHUP more than once; that is no second Ctrl-C.
            if signal == SIGHUP {
                HANGUP.store(!detached, Ordering::SeqCst);
            } else {
                STOPS.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    Ok(())
}

/// Whether to stop.
pub(crate) fn stopping() -> bool {
    STOPS.load(Ordering::SeqCst) > 0 || HANGUP.load(Ordering::SeqCst)
}

/// Whether to stop without waiting for anything.
pub(crate) fn killing() -> bool {
    STOPS.load(Ordering::SeqCst) > 1
}

/// An error when it is time to stop.
pub(crate) fn check() -> Result<()> {
    if stopping() { Err(Interrupted.into()) } else { Ok(()) }
}
