//! Abuse that takes its time. With the other tests these run small, with generous bounds; `cargo xtask abuse` runs them in
//! full, one after the other, and shows their figures.

mod engine;
mod login_flood;
mod login_timing;
mod mail_timing;
mod many_clients;
mod many_connections;
mod timing;
