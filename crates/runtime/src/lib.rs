//! What every role shares as a process: telemetry, lifecycle, redaction.
//!
//! ```no_run
//! # fn serve(_: runtime::Lifecycle) -> Result<(), std::io::Error> { Ok(()) }
//! # fn main() -> std::process::ExitCode {
//! # let settings = config::RuntimeConfig::from_vars(&config::EnvVars).unwrap();
//! // Sync code first: telemetry exists before the runtime, and outlives it.
//! let telemetry = runtime::Telemetry::start("ballast-api", &settings);
//! runtime::run(settings.shutdown, telemetry, async |lifecycle| {
//!     lifecycle.spawn("http", async { /* ends only when the lifecycle says so */ });
//!     Ok::<(), std::io::Error>(())
//! })
//! # }
//! ```

pub mod backoff;
mod breaker;
mod clock;
mod counted;
mod json_log;
mod lifecycle;
mod process;
pub mod redact;
mod run;
mod telemetry;
pub mod trace_context;

pub use breaker::Breaker;
pub use clock::Clock;
// What a `Lifecycle` is made of, for those who need nothing else of the configuration.
pub use config::ShutdownConfig;
pub use counted::Counted;
pub use lifecycle::{Lifecycle, Phase};
pub use run::run;
pub use telemetry::{MetricsHandle, Telemetry};

/// The exit code for a wrong configuration: `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: u8 = 78;

/// Installs the process-wide TLS provider (aws-lc-rs). Without this the first handshake panics when a second backend
/// is in the tree; call it first thing. Calling it again does nothing.
pub fn install_crypto_provider() {
    // An Err only says that a provider is installed already, which is what we want.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
