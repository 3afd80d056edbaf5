//! A **simulated** OpenAI-compatible AI engine, for development, tests and load. There is no model behind it.
//!
//! Every response carries `x-engine-sim: simulation`, the model names begin with `sim-`, and the text itself says that it
//! is a simulation. What it answers depends only on the request and the seed, down to ids and timestamps, so a test can
//! compare bodies byte for byte.
//!
//! ```no_run
//! # async fn example() {
//! let sim = engine_sim::Sim::start(engine_sim::SimConfig::instant()).await;
//! sim.set_defaults("fault=stall:3"); // every following request stalls after three tokens
//! let engine_url = sim.url(); // http://127.0.0.1:PORT
//! // ... drive the gateway under test, drop its client, then:
//! let stats = sim.wait_for(std::time::Duration::from_secs(1), |stats| stats.cancelled == 1).await;
//! assert_eq!(stats.requests_open, 0);
//! # }
//! ```
//!
//! # Routes
//! `POST /v1/chat/completions`, `POST /v1/responses`, `POST /v1/embeddings`, `GET /v1/models`, `GET /v1/models/{id}`,
//! `POST /v1/ai/stream` (named events with ids, as a FastAPI service would send them), `GET /health`, and
//! `GET | POST | DELETE /control`, which reads the counters and sets defaults for all following requests.
//!
//! # Settings
//! `first-token-ms`, `token-interval-ms`, `tokens`, `chunk-bytes`, `unicode` and `fault` (see [`Fault`]). Each comes, in rising
//! precedence, from [`SimConfig`], from `POST /control` (`{"fault": "stall:3", "tokens": 5, "times": 1}`), from a header
//! (`x-sim-fault: stall:3`), or from a marker anywhere in the request body (`[[sim fault=stall:3 tokens=5]]`). The marker is for
//! tests that go through a gateway, which does not forward unknown headers; it is part of the prompt, so it
//! changes the text. An unknown setting or fault is answered 400 with a list of the known ones.
//!
//! # Design
//! The protocol modules (`chat`, `responses`, `events`, `embeddings`, `models`) are pure: they turn a request into an `Answer`,
//! either JSON or a script of steps. A fault is an adapter that rewrites the script. One player performs the steps as an HTTP
//! body; it and `wire` are the only parts that know time and sockets. The accept loop is our own because resetting a
//! connection, tearing a chunk in half and dripping a head need the socket.

mod chat;
mod config;
mod control;
mod effect;
mod embeddings;
mod error;
mod events;
mod exchange;
mod fault;
mod hash;
mod models;
mod plan;
mod prompt;
mod responses;
mod script;
mod server;
mod sim;
mod stats;
mod text;
mod wire;

pub use config::{SimArgs, SimConfig};
pub use fault::Fault;
pub use server::serve;
pub use sim::Sim;
pub use stats::{Cancellation, Phase, SeenRequest, Stats};
