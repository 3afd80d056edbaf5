//! `GET /v1/sessions`.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{AppState, Result, admission::Caller, error::Problem, extract::Json};

/// More are not shown; `POST /v1/auth/logout-all` ends those too.
const MOST: i64 = 100;

#[derive(Serialize, ToSchema)]
pub(super) struct Sessions {
    data: Vec<SessionView>,
}

#[derive(Serialize, ToSchema)]
struct SessionView {
    id: Uuid,
    /// What the program called itself at login.
    user_agent: Option<String>,
    /// Where the login came from.
    ip: Option<String>,
    created_at: DateTime<Utc>,
    /// When its tokens were last renewed.
    last_used_at: DateTime<Utc>,
    /// Used or not, it ends here.
    expires_at: DateTime<Utc>,
    /// The one that asks.
    current: bool,
}

/// Where you are logged in, the most recently used first; at most 100.
#[utoipa::path(get, path = "/v1/sessions", tag = "auth", security(("bearer" = [])),
    responses((status = 200, body = Sessions), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<Sessions>> {
    let current = caller.require_live_session(&state).await?;
    let now = state.clock.now();
    let sessions = state
        .database
        .call("sessions.list", async |c| db::sessions::list(c, caller.user_id, now, MOST).await)
        .await?;
    let view = |s: db::sessions::Session| SessionView {
        current: s.id == current,
        id: s.id,
        user_agent: s.user_agent,
        ip: s.ip,
        created_at: s.created_at,
        last_used_at: s.last_used_at,
        expires_at: s.expires_at,
    };
    Ok(Json(Sessions { data: sessions.into_iter().map(view).collect() }))
}
