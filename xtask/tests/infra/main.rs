//! Everything around the program that no compiler looks at: image, compose stack, workflows, platform settings.
//! These tests read the files; `cargo xtask image` builds and runs them.
#![expect(clippy::unwrap_used, reason = "tests")]

mod compose;
mod deploy;
mod files;
mod habits;
mod image;
mod migrations;
mod observability;
mod platform;
mod production;
mod workflows;
