//! `GET /v1/runs/{id}`.

use axum::extract::State;
use uuid::Uuid;

use super::{RunBody, SCOPE, find};
use crate::{
    AppState, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
};

/// One of your runs: its state, and what it used.
#[utoipa::path(get, path = "/v1/runs/{id}", tag = "runs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = RunBody), (status = 403, body = Problem)))]
pub(super) async fn show(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<RunBody>> {
    caller.require_scope(SCOPE)?;
    Ok(Json(find(&state, &caller, id).await?.into()))
}
