//! The developer commands, run as programs.
#![expect(clippy::unwrap_used, reason = "tests")]

mod commands;
mod database;
mod running;
mod stack;
mod watch;
