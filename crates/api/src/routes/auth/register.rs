//! `POST /v1/auth/register`: a new account.

use axum::{extract::State, http::StatusCode, response::IntoResponse};
use config::SignUp;
use db::one_time_tokens::{self, LiveToken, OneTimeToken, Purpose};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{invitation_required, normalize_email, signup_closed};
use crate::{AppState, Error, Result, admission::Anonymous, auth::Passwords, error::Problem, extract::Json};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ann@example.com", "password": "correct horse battery staple", "invitation_token": "as it came by mail"}))]
pub(super) struct Registration {
    /// The account's address.
    email: String,
    /// 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128)]
    password: String,
    /// As it came by mail to this address: required.
    invitation_token: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Registered {
    id: Uuid,
    email: String,
}

/// Makes an account with the token that was mailed to its address: after `POST /v1/auth/sign-up`, or by an invitation. The
/// address is confirmed by that. Log in afterwards.
///
/// A password that is one of the first to be guessed is refused with the code `password_too_common`; the token still works.
#[utoipa::path(post, path = "/v1/auth/register", tag = "auth", request_body = Registration,
    responses((status = 201, body = Registered), (status = 400, body = Problem), (status = 403, body = Problem),
              (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn register(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<Registration>,
) -> Result<impl IntoResponse> {
    anonymous.admit(&state.limiter.policies().refresh, &anonymous.client.subject()).await?;
    let signup = state.config.auth.signup;
    if signup == SignUp::Closed {
        return Err(signup_closed());
    }
    let email = normalize_email(&body.email)?;
    let password = Passwords::normalize("password", &body.password, &email)?;
    let token = body.invitation_token.ok_or_else(|| token_required(signup))?;
    let token_hash = OneTimeToken::parse(&token).ok_or_else(invalid_invitation)?.hash();
    let now = state.clock.now();
    let find = async |c: &mut _| one_time_tokens::find(c, Purpose::Invite, &token_hash, now).await;
    let found = state.database.call("one_time_tokens.find", find).await?;
    // A token without an invitation is of a sign-up, which may have been closed since.
    let fits = |t: &LiveToken| {
        t.email.as_deref() == Some(&email) && (t.invitation_id.is_some() || signup == SignUp::Open)
    };
    found.filter(fits).ok_or_else(invalid_invitation)?;
    // Only now: hashing is dear, and a stranger must not get it for nothing. The token is used in the transaction.
    let hash = state.passwords.hash(password).await?;
    let id = Uuid::now_v7();
    state
        .database
        .transaction("users.insert", async |c| {
            insert(c, &state, &anonymous, id, (&email, &hash), &token_hash).await
        })
        .await?;
    Ok((StatusCode::CREATED, Json(Registered { id, email })))
}

fn token_required(signup: SignUp) -> Error {
    if signup == SignUp::Invite {
        return invitation_required();
    }
    let detail = "Ask for a mail at `POST /v1/auth/sign-up` first, and send its token as `invitation_token`.";
    Error::forbidden("invitation_required", detail)
}

fn invalid_invitation() -> Error {
    let detail = "The token is unknown, was used, taken back or has expired, or is for another address: ask for a new one.";
    Error::forbidden("invalid_invitation", detail)
}

async fn insert(
    c: &mut db::PgConnection,
    state: &AppState,
    anonymous: &Anonymous,
    id: Uuid,
    (email, password_hash): (&str, &str),
    token_hash: &[u8],
) -> Result<()> {
    let now = state.clock.now();
    let used = one_time_tokens::consume(c, Purpose::Invite, token_hash, now).await?;
    let invitation_id = used.ok_or_else(invalid_invitation)?.invitation_id;
    let role = match invitation_id {
        Some(invitation) => {
            db::invitations::accept(c, invitation, email, now).await?.ok_or_else(invalid_invitation)?
        }
        None => "user".to_owned(),
    };
    db::users::insert(c, id, email, password_hash, &role).await.map_err(|error| {
        match error.constraint() {
            Some("users_email_key") => {
                Error::conflict("email_taken", "There is an account with this address: log in instead.")
            }
            _ => error.into(),
        }
    })?;
    // The token came to this address.
    db::users::confirm_email(c, id, email).await?;
    let event = db::audit::Event {
        detail: json!({ "role": role, "invitation_id": invitation_id }),
        ..anonymous.event("registered", id)
    };
    Ok(db::audit::insert(c, &event).await?)
}
