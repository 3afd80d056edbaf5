//! The library against real servers, or against a machine that has none.
#![expect(clippy::unwrap_used, reason = "tests")]

mod containers;
mod finding;
mod servers;
mod sharing;
mod support;
