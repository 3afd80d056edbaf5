//! `POST /v1/auth/logout`: ends the session of a refresh token.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
};

use super::{Presented, RefreshTokenBody};
use crate::{
    AppState, Result,
    admission::Anonymous,
    auth::{RefreshSecret, clear_cookie, revocation},
    error::Problem,
    extract::Json,
};

/// Ends a session: after the answer no token of it works. Answers the same for a token that is unknown or was used.
///
/// Without a body, the token is that of the cookie, which is cleared.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "auth",
    request_body(content = Option<RefreshTokenBody>, example = json!({"refresh_token": "as it came from login or refresh"})),
    responses((status = 204), (status = 400, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn logout(
    State(state): State<AppState>,
    anonymous: Anonymous,
    headers: HeaderMap,
    body: Option<Json<RefreshTokenBody>>,
) -> Result<impl IntoResponse> {
    anonymous.admit(&state.limiter.policies().refresh, &anonymous.client.subject()).await?;
    let presented = Presented::read(&state, &headers, body)?;
    if let Some(token) = RefreshSecret::parse(&presented.token) {
        state.to_the_end(end_session(state.clone(), anonymous, token)).await?;
    }
    Ok((presented.in_cookie.then(clear_cookie), StatusCode::NO_CONTENT))
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
                session_id: Some(found.session_id),
                ..anonymous.event("logout", found.user_id)
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
