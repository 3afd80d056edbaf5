//! The API: who is asking, whether they may, and the routes.
//!
//! A request's way: [`edge`] (request id, log line, panics, headers, problem documents) -> CORS and compression -> the burst
//! shield -> default-deny authentication ([`auth::gate`]) -> the handler, whose arguments say who may call it
//! ([`admission::Caller`], [`admission::Anonymous`]) and run the admission script.
//!
//! One file per endpoint under `routes/<resource>/<verb>.rs`: error cases, documentation, handler.

pub mod admission;
pub mod ai;
mod app;
pub mod auth;
mod body;
pub mod client_ip;
mod docs;
pub mod edge;
pub mod error;
pub mod extract;
mod limit_headers;
pub mod openapi;
pub mod operator;
pub mod routes;
pub mod runs;
mod state;
mod stream_permit;

pub use app::{router, without_gate};
pub use error::{Error, Result};
pub use state::AppState;
