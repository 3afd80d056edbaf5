//! Webhooks, both ways.
//!
//! **In.** [`Verifier`] says whether a request was signed by the sender that it claims to be from, and gives the sender's id
//! of the event: [Standard Webhooks](https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md)
//! and [Stripe's scheme](https://docs.stripe.com/webhooks?verify=verify-manually). The API stores the event under that id,
//! once, and the job `process_webhook` acts on it.
//!
//! **Out.** [`emit`] makes a delivery for each endpoint that a user registered, in the caller's transaction; the job
//! `deliver_webhook` signs it with [`standard::sign`] and sends it with [`Client`], which goes to public addresses only.
//!
//! To delete webhooks: this crate, the folders `webhooks` and `webhook_endpoints` of the API's routes, the two jobs, the
//! migration, and the variables `STRIPE_WEBHOOK_SECRET` and `WEBHOOK_SECRETS`; the compiler names what is left.

mod address;
mod client;
mod emit;
pub mod standard;
pub mod stripe;
mod verify;

pub use address::is_public;
pub use client::{Client, Refused, Rules, Undelivered};
pub use emit::{EVENT_TYPES, EmitError, emit, ping};
pub use verify::{Verifier, VerifyError};
