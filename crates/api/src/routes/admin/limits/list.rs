//! `GET /v1/admin/limits`.

use axum::extract::State;
use limits::Per;
use serde::Serialize;
use utoipa::ToSchema;

use super::bucket::forms;
use crate::{AppState, admission::Admin, extract::Json};

#[derive(Serialize, ToSchema)]
pub(super) struct PolicyList {
    /// The table of policies.
    data: Vec<PolicyView>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct PolicyView {
    /// Its name, in headers and metrics too.
    name: &'static str,
    /// How it counts: `gcra`, `sliding-window`, `fixed-window` or `permits`.
    algorithm: &'static str,
    /// Units per period such as `100/15m`, or with `permits` how many at a time.
    limit: String,
    /// How the keys of its buckets are written.
    keys: Vec<&'static str>,
    /// Whether an API key may have a limit of its own.
    per_api_key: bool,
}

/// Every rate limit of this deployment, with what it allows and whom it charges.
#[utoipa::path(get, path = "/v1/admin/limits", tag = "admin", security(("bearer" = [])),
    responses((status = 200, body = PolicyList), (status = 403, body = crate::error::Problem)))]
pub(super) async fn list(State(state): State<AppState>, _: Admin) -> Json<PolicyList> {
    let view = |policy: &limits::Policy| PolicyView {
        name: policy.name,
        algorithm: policy.algorithm.as_str(),
        limit: policy.limit_text(),
        keys: forms(policy.per).to_vec(),
        per_api_key: matches!(policy.per, Per::Client | Per::Caller),
    };
    Json(PolicyList { data: state.limiter.policies().all().into_iter().map(view).collect() })
}
