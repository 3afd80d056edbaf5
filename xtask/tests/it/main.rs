//! The developer commands, run as programs.
#![expect(clippy::unwrap_used, reason = "tests")]

mod commands;
mod running;
mod stack;
mod watch;
