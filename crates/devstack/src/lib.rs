//! Postgres and Redis for development and tests, on a machine that may have neither.
//!
//! [`Services::start`] gives a running Postgres and a running Redis. For each of the two it takes the first that works:
//!
//! 1. the URL that the caller was given (`DATABASE_URL`, `REDIS_URL`): used as it is, never initialised;
//! 2. server programs on this machine: a private instance on 127.0.0.1, a free port, and a data directory of its own;
//! 3. the package manager (apt-get, dnf, pacman, brew): installs the programs, then as 2;
//! 4. Docker, when a daemon answers;
//! 5. otherwise an [`Unavailable`] error that names the ways out.
//!
//! Private instances never touch a server that is already there: they share no port, no directory and no user's data
//! with it. They need a password even on the loopback interface, because other users of the machine can reach that too.
//!
//! As root, the servers run as `postgres` or `nobody` (Postgres refuses root), in a directory that this user can reach.
//!
//! [`shared::test_services`] keeps one pair for all tests of a checkout and ends it after five idle minutes.
//!
//! The crate is plain blocking `std`, so that `cargo stack` compiles in seconds.
#![expect(
    clippy::disallowed_methods,
    reason = "a developer tool, no part of the served program: it reads PATH and its one variable, and needs no fake clock"
)]

mod docker;
mod files;
mod find;
mod install;
pub mod ports;
mod postgres;
pub mod process;
pub mod project;
mod redis;
mod service;
pub mod shared;
mod system;

pub use files::{Lock, write_atomic};
pub use install::{Install, ask, install_python, nginx};
pub use service::{Record, Service, Services, Spec, delete_data};
pub use system::System;

/// Something this machine lacks or that stands in the way, with the ways out in the text. Commands answer it with exit
/// code 2: nothing is wrong with the project, the person at the terminal has to decide.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// How long the data lives, and with it how hard the servers try to keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Data survives stops and crashes: `cargo stack`.
    Keep,
    /// Data is deleted when the service stops; `fsync` and friends are off: tests.
    Throwaway,
}

/// Oldest major version of Postgres that the project supports (the oldest that gets upstream fixes).
pub const MIN_POSTGRES: u32 = 14;

/// Oldest version of Redis that the project supports (Valkey counts from 7.2).
pub const MIN_REDIS: (u32, u32) = (6, 2);
