//! `POST /v1/auth/password`: another password, by somebody who knows the current one.

use axum::{extract::State, http::StatusCode};
use db::{
    one_time_tokens::{self, Purpose},
    sessions::Revoked,
};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    admission::{Caller, Pending},
    auth::{Passwords, revocation},
    error::Problem,
    extract::Json,
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"current_password": "the one until now", "new_password": "battery horse staple correct"}))]
pub(super) struct ChangePassword {
    /// The one that is to go.
    current_password: String,
    /// The new one: 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128)]
    new_password: String,
}

/// Changes your password and ends all your other sessions. API keys stay.
///
/// A password that is one of the first to be guessed is refused with the code `password_too_common`.
#[utoipa::path(post, path = "/v1/auth/password", tag = "auth", security(("bearer" = [])), request_body = ChangePassword,
    responses((status = 204), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn change_password(
    State(state): State<AppState>,
    pending: Pending,
    Json(body): Json<ChangePassword>,
) -> Result<StatusCode> {
    // As strict as login: a stolen access token must not become a way to guess the password.
    let policy = &state.limiter.policies().login;
    let (caller, _) = pending
        .admit(|admission, caller| {
            admission.charge(policy.charge(format!("user:{}", caller.user_id), 1));
        })
        .await?;
    let session_id = caller.require_live_session(&state).await?;
    let (user, old_hash) = state
        .database
        .call::<_, db::Error>("users.password_hash", async |c| {
            let user = db::users::find(c, caller.user_id).await?;
            Ok((user, db::users::password_hash(c, caller.user_id).await?))
        })
        .await?;
    let email = user.map(|u| u.email).unwrap_or_default();
    let new = Passwords::normalize("new_password", &body.new_password, &email)?;
    let compared =
        state.passwords.verify("current_password", &body.current_password, old_hash.clone()).await?;
    let Some(old_hash) = old_hash.filter(|_| compared.matches) else {
        let refuse = async |c: &mut _| db::audit::insert(c, &caller.event("password_change_refused")).await;
        state.database.call("audit.insert", refuse).await?;
        return Err(Error::forbidden("wrong_password", "The current password is wrong."));
    };
    let new_hash = state.passwords.hash(new).await?;
    state.to_the_end(change_and_end_others(state.clone(), caller, session_id, old_hash, new_hash)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change_and_end_others(
    state: AppState,
    caller: Caller,
    session_id: Uuid,
    old_hash: String,
    new_hash: String,
) -> Result<()> {
    let ended = state
        .database
        .transaction("users.change_password", async |c| {
            change(c, &caller, session_id, &old_hash, &new_hash).await
        })
        .await?;
    revocation::mark_sessions(&state, &ended).await;
    Ok(())
}

async fn change(
    c: &mut db::PgConnection,
    caller: &Caller,
    session_id: Uuid,
    old_hash: &str,
    new_hash: &str,
) -> Result<Vec<Revoked>> {
    db::users::lock(c, caller.user_id).await?;
    if !db::users::replace_password_hash(c, caller.user_id, old_hash, new_hash).await? {
        let detail = "The password was changed by somebody else at the same moment.";
        return Err(Error::conflict("password_changed", detail));
    }
    // A mail that is on its way would be a way back for somebody who should be out.
    one_time_tokens::void(c, Purpose::ResetPassword, caller.user_id, None).await?;
    let ended = db::sessions::revoke_all(c, caller.user_id, Some(session_id), "password changed").await?;
    let event = db::audit::Event {
        detail: json!({ "sessions_ended": ended.len() }),
        ..caller.event("password_changed")
    };
    db::audit::insert(c, &event).await?;
    Ok(ended)
}
