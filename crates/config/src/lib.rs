//! Typed settings from environment variables, and nothing else.
//!
//! - [`ApiConfig::from_vars`] and [`WorkerConfig::from_vars`] are pure functions of a [`Vars`]: tests pass a map.
//! - *All* problems are reported in one go, each with the name of its variable and a way out; no secret is printed.
//! - One table, [`VARIABLES`], holds every variable with its default and its documentation. `.env.example`,
//!   `.env.production.example` and `docs/configuration.md` are generated from it, and a test fails when they drift.
//!
//! ```
//! use config::{MapVars, WorkerConfig};
//!
//! let problems = WorkerConfig::from_vars(&MapVars::from([("APP_ENV", "production"), ("PORT", "eighty")])).unwrap_err();
//! let report = problems.to_string();
//! assert!(report.contains("DATABASE_URL") && report.contains("PORT"), "both are named: {report}");
//! ```
//!
//! Add a variable: one entry in `table.rs`, one field in `settings.rs`, then `UPDATE_DOCS=1 cargo test -p config`.

mod keys;
mod reader;
mod render;
mod secrets;
mod settings;
mod table;
mod types;
mod vars;

pub use keys::{EncryptionKey, SigningKey, VerifyKey};
pub use reader::{Problem, Problems};
pub use render::{configuration_md, env_example, env_production_example};
pub use secrets::secrets;
pub use settings::{
    AiConfig, ApiConfig, AuthConfig, CacheConfig, CachedRoute, CredentialsConfig, DatabaseConfig,
    EngineConfig, HttpConfig, LimitsConfig, MailConfig, ModelRule, QueueConfig, RedisConfig, RetentionConfig,
    RunsConfig, RuntimeConfig, ShutdownConfig, StoresConfig, TelemetryConfig, WebhooksConfig, WorkerConfig,
};
pub use table::{UsedBy, VARIABLES, Variable, WhenUnset};
pub use types::{Environment, LogFormat, Rate, SignUp, TrustedProxy};
pub use vars::{EnvVars, MapVars, Vars};
