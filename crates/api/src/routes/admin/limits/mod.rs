//! The rate limits, as administrators see and reset them.

mod bucket;
mod list;
mod reset;
mod show;

use std::time::Duration;

use limits::ChargeState;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::bucket::Bucket;
use crate::{AppState, Error};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list::list)).routes(routes!(show::show, reset::reset))
}

/// Where a bucket stands.
#[derive(Serialize, ToSchema)]
pub(super) struct BucketView {
    /// The policy.
    policy: &'static str,
    /// Whose bucket, as Redis knows it: an account is a pseudonym there, and an IPv6 address its /64.
    key: String,
    /// Units per period; with `permits`, so many at a time.
    limit: u64,
    /// The period in seconds; with `permits`, how long one is good without renewal.
    period_seconds: f64,
    /// Units left.
    remaining: u64,
    /// Seconds until it is full again, or until the window ends; 0 when nothing is used, and with `permits`.
    reset_seconds: f64,
}

impl BucketView {
    fn new(bucket: Bucket, state: ChargeState) -> Self {
        Self {
            policy: bucket.policy.name,
            key: bucket.subject,
            limit: state.limit,
            period_seconds: state.period.as_secs_f64(),
            remaining: state.remaining,
            reset_seconds: state.reset.as_secs_f64(),
        }
    }
}

fn unavailable(error: db::RedisError) -> Error {
    let detail = "Redis is out: at the moment each replica limits for itself.";
    Error::unavailable("limits_unavailable", detail, Duration::from_secs(2)).with_source(error)
}
