//! `POST /v1/auth/refresh`: the next pair of tokens.
//!
//! Rotation as in OAuth 2.0 Security Best Current Practice (RFC 9700, section 4.14.2): each token works once; a second use
//! means that it was stolen, and ends the session. Except within a short grace for the immediate parent while its child is
//! unused: then an answer was lost or two tabs were quick, and the same child is given again.

use axum::{extract::State, http::HeaderMap, response::IntoResponse};
use chrono::TimeDelta;
use serde_json::json;

use super::{Issued, Presented, RefreshTokenBody, Tokens, delta};
use crate::{
    AppState, Error, Result,
    admission::Anonymous,
    auth::{RefreshSecret, revocation},
    error::Problem,
    extract::Json,
};

const GRACE: TimeDelta = TimeDelta::seconds(10);

/// What the transaction found.
enum Outcome {
    /// The session goes on with the child.
    Exchanged(Issued),
    /// Unknown, expired, or of a session that ended.
    Invalid,
    /// Used before: the session was ended.
    Reused(uuid::Uuid),
}

/// Exchanges a refresh token. Each works once.
///
/// Without a body, the token is that of the cookie, and the next one comes as a cookie too.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "auth",
    request_body(content = Option<RefreshTokenBody>, example = json!({"refresh_token": "as it came from login or refresh"})),
    responses((status = 200, body = Tokens), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn refresh(
    State(state): State<AppState>,
    anonymous: Anonymous,
    headers: HeaderMap,
    body: Option<Json<RefreshTokenBody>>,
) -> Result<impl IntoResponse> {
    anonymous.admit(&state.limiter.policies().refresh, &anonymous.client.subject()).await?;
    let presented = Presented::read(&state, &headers, body)?;
    let parent = RefreshSecret::parse(&presented.token).ok_or_else(invalid)?;
    let child = parent.child(&state.config.auth.server_secret);
    // To the end: whoever reuses a token must not keep its session alive by leaving early.
    let session = state.to_the_end(rotate(state.clone(), anonymous, parent, child.clone())).await?;
    session.answer(&state, &child, presented.in_cookie)
}

fn invalid() -> Error {
    Error::unauthorized("invalid_token", "The refresh token is invalid: log in again.")
}

async fn rotate(
    state: AppState,
    anonymous: Anonymous,
    parent: RefreshSecret,
    child: RefreshSecret,
) -> Result<Issued> {
    let outcome = state
        .database
        .transaction("sessions.refresh", async |c| exchange(c, &state, &anonymous, &parent, &child).await)
        .await?;
    match outcome {
        Outcome::Exchanged(session) => Ok(session),
        Outcome::Invalid => Err(invalid()),
        Outcome::Reused(session_id) => {
            tracing::warn!(%session_id, "a refresh token was used twice; the session was ended");
            revocation::mark_session(&state, session_id).await;
            Err(invalid())
        }
    }
}

async fn exchange(
    c: &mut db::PgConnection,
    state: &AppState,
    anonymous: &Anonymous,
    parent: &RefreshSecret,
    child: &RefreshSecret,
) -> Result<Outcome> {
    let now = state.clock.now();
    let Some(found) = db::sessions::lock_by_refresh_token(c, &parent.hash()).await? else {
        return Ok(Outcome::Invalid);
    };
    if found.dead || found.expires_at <= now || found.session_expires_at <= now {
        return Ok(Outcome::Invalid);
    }
    let again = found.used_at.is_some_and(|used| now - used <= GRACE) && !found.child_used;
    if found.used_at.is_some() && !again {
        db::sessions::revoke(c, found.session_id, "refresh token used twice").await?;
        let event = db::audit::Event {
            session_id: Some(found.session_id),
            detail: json!({ "seconds_since_first_use": found.used_at.map(|used| (now - used).num_seconds()) }),
            ..anonymous.event("refresh_reuse", found.user_id)
        };
        db::audit::insert(c, &event).await?;
        return Ok(Outcome::Reused(found.session_id));
    }
    db::sessions::use_refresh_token(c, &parent.hash(), found.session_id, now).await?;
    let expires = found.session_expires_at.min(now + delta(state.config.auth.refresh_token_ttl));
    db::sessions::insert_refresh_token(c, &child.hash(), found.session_id, Some(&parent.hash()), expires)
        .await?;
    Ok(Outcome::Exchanged(Issued {
        user_id: found.user_id,
        session_id: found.session_id,
        role: found.role,
        refresh_expires: expires,
    }))
}
