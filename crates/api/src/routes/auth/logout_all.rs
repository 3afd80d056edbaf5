//! `POST /v1/auth/logout-all`: ends every session of a user.

use axum::{extract::State, http::StatusCode};
use serde_json::json;

use crate::{AppState, Result, admission::Caller, auth::revocation, error::Problem};

/// Ends all your sessions, this one included: after the answer no token of any of them works. API keys stay.
#[utoipa::path(post, path = "/v1/auth/logout-all", tag = "auth", security(("bearer" = [])),
    responses((status = 204), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn logout_all(State(state): State<AppState>, caller: Caller) -> Result<StatusCode> {
    caller.require_live_session(&state).await?;
    state.to_the_end(end_all(state.clone(), caller)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn end_all(state: AppState, caller: Caller) -> Result<()> {
    let ended = state
        .database
        .transaction::<_, db::Error>("sessions.revoke_all", async |c| {
            db::users::lock(c, caller.user_id).await?;
            let ended = db::sessions::revoke_all(c, caller.user_id, None, "logout everywhere").await?;
            let event = db::audit::Event {
                detail: json!({ "sessions_ended": ended.len() }),
                ..caller.event("logout_all")
            };
            db::audit::insert(c, &event).await?;
            Ok(ended)
        })
        .await?;
    revocation::mark_sessions(&state, &ended).await;
    Ok(())
}
