//! `DELETE /v1/admin/limits/{policy}`.

use axum::extract::State;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{
    super::actor,
    bucket::{Bucket, Key},
    unavailable,
};
use crate::{
    AppState, Error, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path, Query},
};

#[derive(Serialize, ToSchema)]
pub(super) struct Reset {
    /// The policy.
    policy: &'static str,
    /// Whose bucket, as Redis knows it.
    key: String,
    /// False when nothing was used.
    was_used: bool,
}

/// Gives somebody all of what a policy allows, as if they had used nothing. Permits of streams that still run are counted
/// again with their next renewal, within 20 s.
#[utoipa::path(delete, path = "/v1/admin/limits/{policy}", tag = "admin", security(("bearer" = [])),
    params(("policy" = String, Path, description = "Name of the policy", example = "login"), Key),
    responses((status = 200, body = Reset), (status = 403, body = Problem),
              (status = 404, description = "No such policy, with the list of them, or no such API key.", body = Problem),
              (status = 422, description = "The policy has no keys of this form.", body = Problem)))]
pub(super) async fn reset(
    State(state): State<AppState>,
    admin: Admin,
    Path(policy): Path<String>,
    Query(Key { key }): Query<Key>,
) -> Result<Json<Reset>> {
    let Bucket { policy, subject } = Bucket::find(&state, &policy, &key).await?;
    // Either both or, as far as it can be, neither: no reset without its line in the log.
    let was_used = state
        .database
        .transaction::<_, Error>("audit.limit_reset", async |c| {
            let event = db::audit::Event {
                event: "limit_reset",
                detail: json!({ "policy": policy.name, "key": subject }),
                ..actor(&admin)
            };
            db::audit::insert(c, &event).await?;
            state.limiter.reset(&policy, &subject).await.map_err(unavailable)
        })
        .await?;
    Ok(Json(Reset { policy: policy.name, key: subject, was_used }))
}
