//! Calls to AI engines, for the API's proxy and for jobs of the worker.
//!
//! ```no_run
//! # async fn example(config: &config::AiConfig) -> anyhow::Result<()> {
//! use engine::{Answer, Engines, Request, Want};
//!
//! let engines = Engines::from_config(config)?;
//! let body = r#"{"model": "sim-embedding", "input": "Hello!"}"#;
//! let request = Request::post(["embeddings"], body.into()).model("sim-embedding");
//! match engines.call(request, Want::Json).await? {
//!     Answer::Whole { body, .. } => println!("{} bytes", body.len()),
//!     Answer::Stream(_) => unreachable!("a document was asked for"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! - A request is built anew: nothing of the client's is in it but the body and a few allowed headers. No redirect is followed,
//!   no proxy of the environment is used, and no compressed answer is accepted.
//! - Every wait has a deadline of its own, and none is a total timeout of the HTTP client, which would cut healthy streams.
//! - A stream is returned with its first event: whatever goes wrong before that is a [`Fault`], and may have been tried again.
//! - Dropping the future of a call, or an [`EventStream`], cancels the request: the connection to the engine is closed.
//! - Memory is bounded, whatever the engine sends.
//!
//! What happens inside a stream after its first event (silence, length, errors) is up to the caller.

mod answer;
mod budget;
mod client;
mod engine;
mod engines;
mod error;
mod fault;
mod measure;
mod models;
mod request;
mod usage;

pub use self::{
    answer::{Answer, EventStream},
    engines::Engines,
    error::EngineError,
    fault::{Fault, Timer},
    measure::Exchange,
    request::{Asked, FORWARDED, Name, Request, Want},
    usage::{Report, Usage},
};
