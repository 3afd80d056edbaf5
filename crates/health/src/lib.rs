//! Health: is the process alive, may it have traffic, did it ever come up, and what is the matter.
//!
//! | route | asks | answers |
//! |---|---|---|
//! | `/livez` | does the process run at all? No I/O. | 200 |
//! | `/readyz` | may it have traffic? Required checks and the lifecycle. | 200, or 503 |
//! | `/startupz` | was everything up once? | 503 until then, 200 ever after |
//! | `/health` | the whole report | 200 for ok and degraded, 503 for error |
//!
//! A check is [`Required`](Kind::Required) (without it the process cannot serve) or [`Optional`](Kind::Optional) (without it
//! the process serves less, `degraded`): answering 503 because Redis is out would take the whole fleet down at once, which
//! is worse than serving without it. Checks run side by side, each with its own timeout, and their results are kept for a
//! second, so that probes cost the dependencies nothing.
//!
//! ```
//! use health::{Kind, Registry};
//! use std::time::Duration;
//!
//! # let lifecycle = runtime::Lifecycle::new(config::ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(1) });
//! let registry = Registry::new(lifecycle, "1.0.0");
//! registry.register("disk", Kind::Optional, Duration::from_millis(500), || async {
//!     Err("volume is full".to_owned())
//! });
//! ```

mod registry;
mod routes;

pub use registry::{CheckReport, Kind, Registry, Report, Status};
pub use routes::{MetricsAccess, admin_router, openapi, router};
