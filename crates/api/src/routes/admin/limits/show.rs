//! `GET /v1/admin/limits/{policy}`.

use axum::extract::State;

use super::{
    BucketView,
    bucket::{Bucket, Key},
    unavailable,
};
use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path, Query},
};

/// Where somebody stands with a policy. Looking costs them nothing.
#[utoipa::path(get, path = "/v1/admin/limits/{policy}", tag = "admin", security(("bearer" = [])),
    params(("policy" = String, Path, description = "Name of the policy", example = "login"), Key),
    responses((status = 200, body = BucketView), (status = 403, body = Problem),
              (status = 404, description = "No such policy, with the list of them, or no such API key.", body = Problem),
              (status = 422, description = "The policy has no keys of this form.", body = Problem)))]
pub(super) async fn show(
    State(state): State<AppState>,
    _: Admin,
    Path(policy): Path<String>,
    Query(Key { key }): Query<Key>,
) -> Result<Json<BucketView>> {
    let bucket = Bucket::find(&state, &policy, &key).await?;
    let found = state.limiter.look(&bucket.policy, &bucket.subject).await.map_err(unavailable)?;
    Ok(Json(BucketView::new(bucket, found)))
}
