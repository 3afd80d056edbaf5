//! The whole stack under test: the real router on a real socket, real Postgres and Redis, the simulated engine, and the
//! real binary where it matters. One test binary, because linking it takes longer than running it.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod support;

mod abuse;
mod accounts;
mod ai;
mod api_keys;
mod auth;
mod backfills;
mod backup;
mod bodies;
mod boot;
mod canaries;
mod chained;
mod cli;
mod contract;
mod credentials;
mod dependencies;
mod documents;
mod edge;
mod faults;
mod jobs;
mod key_rotation;
mod keygen;
mod migrations;
mod nginx;
mod operator;
mod passwords;
mod races;
mod rate_limits;
mod releases;
mod revocation;
mod round_trips;
mod runs;
mod shutdown;
mod slow_clients;
mod smuggling;
mod subscriptions;
mod telemetry;
mod tls;
mod tokens;
mod users;
mod webhook_endpoints;
mod webhooks;
mod worker_faults;
