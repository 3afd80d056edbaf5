//! `POST /v1/auth/password/reset`: a new password for the token of a mail.

use axum::{extract::State, http::StatusCode};
use db::{
    one_time_tokens::{self, OneTimeToken, Purpose},
    sessions::Revoked,
};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::invalid_one_time_token;
use crate::{
    AppState, Result,
    admission::Anonymous,
    auth::{Passwords, revocation},
    error::Problem,
    extract::Json,
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"token": "as it came by mail", "password": "correct horse battery staple"}))]
pub(super) struct ResetPassword {
    /// As it came by mail.
    token: String,
    /// The new one: 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128)]
    password: String,
}

/// Sets a new password with the token that was mailed, and ends all sessions. Each token works once.
///
/// API keys stay, unless the address was not confirmed until now: then they, stored credentials and webhook endpoints may be
/// somebody else's, and are ended.
///
/// A password that is one of the first to be guessed is refused with the code `password_too_common`; the token still works.
#[utoipa::path(post, path = "/v1/auth/password/reset", tag = "auth", request_body = ResetPassword,
    responses((status = 204), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn reset_password(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<ResetPassword>,
) -> Result<StatusCode> {
    anonymous.admit(&state.limiter.policies().refresh, &anonymous.client.subject()).await?;
    let token = OneTimeToken::parse(&body.token).ok_or_else(invalid_one_time_token)?;
    let (hash, now) = (token.hash(), state.clock.now());
    let find = async |c: &mut _| one_time_tokens::find(c, Purpose::ResetPassword, &hash, now).await;
    let found = state.database.call("one_time_tokens.find", find).await?;
    let found = found.and_then(|t| Some((t.user_id?, t.email.unwrap_or_default())));
    let (user_id, email) = found.ok_or_else(invalid_one_time_token)?;
    let password = Passwords::normalize("password", &body.password, &email)?;
    // Only now: hashing is dear, and a stranger must not get it for nothing.
    let password_hash = state.passwords.hash(password).await?;
    state.to_the_end(set_and_end_sessions(state.clone(), anonymous, user_id, hash, password_hash)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_and_end_sessions(
    state: AppState,
    anonymous: Anonymous,
    user_id: Uuid,
    token_hash: [u8; 32],
    password_hash: String,
) -> Result<()> {
    let (sessions, api_keys) = state
        .database
        .transaction("users.reset_password", async |c| {
            reset(c, &state, &anonymous, user_id, &token_hash, &password_hash).await
        })
        .await?;
    revocation::mark_sessions(&state, &sessions).await;
    for public_id in &api_keys {
        revocation::mark_key(&state, public_id).await?;
    }
    Ok(())
}

async fn reset(
    c: &mut db::PgConnection,
    state: &AppState,
    anonymous: &Anonymous,
    user_id: Uuid,
    token_hash: &[u8],
    password_hash: &str,
) -> Result<(Vec<Revoked>, Vec<String>)> {
    let user = db::users::lock(c, user_id).await?.filter(|u| u.disabled_at.is_none());
    let user = user.ok_or_else(invalid_one_time_token)?;
    let used = one_time_tokens::consume(c, Purpose::ResetPassword, token_hash, state.clock.now()).await?;
    let mailed_to = used.ok_or_else(invalid_one_time_token)?.email.unwrap_or_default();
    one_time_tokens::void(c, Purpose::ResetPassword, user_id, None).await?;
    db::users::set_password_hash(c, user_id, password_hash).await?;
    let mut api_keys = Vec::new();
    // Whoever has the token reads the mail of that address. Whoever registered with it may have been somebody else.
    if user.email_verified_at.is_none() && db::users::confirm_email(c, user_id, &mailed_to).await? {
        one_time_tokens::void(c, Purpose::VerifyEmail, user_id, None).await?;
        api_keys = db::users::end_what_is_unconfirmed(c, user_id).await?;
    }
    let ended = db::sessions::revoke_all(c, user_id, None, "password reset").await?;
    let event = db::audit::Event {
        detail: json!({ "sessions_ended": ended.len(), "api_keys_revoked": api_keys.len() }),
        ..anonymous.event("password_reset", user_id)
    };
    db::audit::insert(c, &event).await?;
    Ok((ended, api_keys))
}
