//! The developer commands, run as programs.
#![expect(clippy::unwrap_used, reason = "tests")]

mod running;
mod stack;
