//! `GET /v1/me`: who am I?

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{AppState, Error, Result, admission::Caller, error::Problem, extract::Json};

#[derive(Serialize, ToSchema)]
pub(super) struct Me {
    id: Uuid,
    email: String,
    role: String,
    email_verified: bool,
    created_at: DateTime<Utc>,
    /// How this request is authenticated: `session` or `api_key`.
    authenticated_by: &'static str,
    /// What the API key may do; absent for sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
}

/// The user behind this request.
#[utoipa::path(get, path = "/v1/me", tag = "auth", security(("bearer" = []), ("api_key" = [])),
    responses((status = 200, body = Me), (status = 401, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn me(State(state): State<AppState>, caller: Caller) -> Result<Json<Me>> {
    let user = state.database.call("users.find", async |c| db::users::find(c, caller.user_id).await).await?;
    let user = user.ok_or_else(|| Error::unauthorized("invalid_token", "The user of this token is gone."))?;
    Ok(Json(Me {
        id: user.id,
        email: user.email,
        role: user.role,
        email_verified: user.email_verified_at.is_some(),
        created_at: user.created_at,
        authenticated_by: if caller.session_id.is_some() { "session" } else { "api_key" },
        scopes: caller.scopes,
    }))
}
