//! `GET /v1/api-keys`.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiKeyView;
use crate::{AppState, Result, admission::Caller, error::Problem, extract::Json};

/// Twice as many as can be in use.
const SHOWN: i64 = 2 * super::MOST;

#[derive(Serialize, ToSchema)]
pub(super) struct ApiKeys {
    data: Vec<ApiKeyView>,
}

/// Your newest 200 keys, newest first, revoked ones included.
#[utoipa::path(get, path = "/v1/api-keys", tag = "api keys", security(("bearer" = [])),
    responses((status = 200, body = ApiKeys), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<ApiKeys>> {
    caller.require_live_session(&state).await?;
    let list = async |c: &mut _| db::api_keys::list(c, caller.user_id, SHOWN).await;
    let keys = state.database.call("api_keys.list", list).await?;
    Ok(Json(ApiKeys { data: keys.into_iter().map(ApiKeyView::from).collect() }))
}
