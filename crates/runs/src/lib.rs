//! Resumable runs: what the API that shows them and the worker that makes them share.
//!
//! ```text
//! client ── POST /v1/runs ──▶ API ──▶ Postgres: the run and its job, in one transaction
//!                                         │ claimed
//!                                       worker ──▶ engine
//!                                         │ events
//! client ◀── GET .../events ── API ◀── Redis Stream
//! ```
//!
//! - [`Events`] is a run's stream in Redis: bounded, and gone some time after its last event. Each entry has its attempt and
//!   its number in it, so a reader knows what is new, what it has seen, and what is missing ([`Place`]).
//! - [`Ticket`] lets somebody read one run who cannot send headers.
//! - [`Held`] is what a run holds of its user's limits, written down: another process gives it back.
//! - [`end`] ends a run, once, whoever does it.
//!
//! Postgres has the truth about a run's state. Redis has its events, and may lose them.

mod end;
mod events;
mod held;
mod ticket;

pub use end::{end, end_lost};
pub use events::{Entry, EventId, Events, Kind, Place};
pub use held::Held;
pub use ticket::{Holder, Ticket};
