//! Who may pass: rate limits, permits and revocation, decided in one round trip to Redis.
//!
//! - [`Policies`] is the one table of named limits.
//! - [`Admission`] collects everything that one request must pass: revocation marks, the API key's record, charges on
//!   policies, a permit for a concurrent stream. [`Limiter::admit`] decides on all of it at once, all or nothing: a request
//!   that is refused by one policy costs nothing on the others.
//! - [`Limiter::settle`] corrects a charge when the true cost is known, and gives the permit back.
//! - While Redis is out, local limits hold in the process: each replica allows its share.
//!
//! The script's interface is versioned and frozen: `docs/decisions/0004-admission-script.md`.
//!
//! ```no_run
//! # async fn example(limiter: limits::Limiter, user: &str) {
//! use limits::{Admission, Decision};
//!
//! let mut admission = Admission::default();
//! admission.charge(limiter.policies().ai_requests.charge(user, 1));
//! match limiter.admit(&admission).await {
//!     Decision::Admitted(admitted) => { /* go on; headers from admitted.states */ }
//!     Decision::Limited(limited) => { /* 429 with Retry-After: limited.retry_after */ }
//!     _ => { /* revoked, or an API key to load */ }
//! }
//! # }
//! ```

mod admission;
mod bucket;
mod limiter;
mod local;
mod metric;
mod permits;
mod policy;

pub use admission::{Admission, Admitted, Charge, ChargeState, Decision, Limited, Permit, Settlement};
pub use bucket::{Bucket, Micros, Standing};
pub use limiter::Limiter;
pub use policy::{Algorithm, OverrideProblem, Overrides, Per, Policies, Policy};
