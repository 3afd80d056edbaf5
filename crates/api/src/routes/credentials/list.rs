//! `GET /v1/credentials`.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::CredentialView;
use crate::{AppState, Result, admission::Caller, error::Problem, extract::Json};

#[derive(Serialize, ToSchema)]
pub(super) struct Credentials {
    data: Vec<CredentialView>,
}

/// Your stored credentials, newest first. Never their secrets.
#[utoipa::path(get, path = "/v1/credentials", tag = "credentials", security(("bearer" = [])),
    responses((status = 200, body = Credentials), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<Credentials>> {
    caller.require_live_session(&state).await?;
    let found = state
        .database
        .call("credentials.list", async |c| db::credentials::list(c, caller.user_id).await)
        .await?;
    Ok(Json(Credentials { data: found.into_iter().map(CredentialView::from).collect() }))
}
