//! `POST /v1/auth/logout`: ends the session of a refresh token.

use axum::{extract::State, http::StatusCode};

use super::RefreshTokenBody;
use crate::{
    AppState, Result,
    admission::Anonymous,
    auth::{RefreshSecret, revocation},
    error::Problem,
    extract::Json,
};

/// Ends a session: after the answer no token of it works. Answers the same for a token that is unknown or was used.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "auth", request_body = RefreshTokenBody,
    responses((status = 204), (status = 422, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn logout(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<RefreshTokenBody>,
) -> Result<StatusCode> {
    anonymous.admit(&state.limiter.policies().refresh, &format!("ip:{}", anonymous.client.bucket())).await?;
    if let Some(token) = RefreshSecret::parse(&body.refresh_token) {
        state.to_the_end(end_session(state.clone(), anonymous, token)).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn end_session(state: AppState, anonymous: Anonymous, token: RefreshSecret) -> Result<()> {
    let ended = state
        .database
        .transaction::<_, db::Error>("sessions.logout", async |c| {
            let Some(found) = db::sessions::lock_by_refresh_token(c, &token.hash()).await? else {
                return Ok(None);
            };
            db::sessions::revoke(c, found.session_id, "logout").await?;
            let event = db::audit::Event {
                event: "logout",
                user_id: Some(found.user_id),
                session_id: Some(found.session_id),
                ip: Some(anonymous.client.0),
                request_id: Some(&anonymous.request_id),
                ..Default::default()
            };
            db::audit::insert(c, &event).await?;
            Ok(Some(found.session_id))
        })
        .await?;
    if let Some(session_id) = ended {
        revocation::mark_session(&state, session_id).await;
    }
    Ok(())
}
