//! `POST /v1/auth/register`: a new account.

use axum::{extract::State, http::StatusCode, response::IntoResponse};
use config::SignUp;
use db::one_time_tokens::{self, OneTimeToken, Purpose};
use job_specs::AccountMail;
use jobs::EnqueueOptions;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::normalize_email;
use crate::{AppState, Error, Result, admission::Anonymous, auth::Passwords, error::Problem, extract::Json};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ann@example.com", "password": "correct horse battery staple"}))]
pub(super) struct Registration {
    /// The account's address.
    email: String,
    /// 8 to 128 characters.
    #[schema(min_length = 8, max_length = 128)]
    password: String,
    /// As it came by mail. Required where sign-up is by invitation.
    invitation_token: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Registered {
    id: Uuid,
    email: String,
}

/// Makes an account, where sign-up is open, or with an invitation. Log in afterwards.
///
/// A password that is one of the first to be guessed is refused with the code `password_too_common`.
///
/// A mail asks to confirm the address. Whoever brings an invitation has done that: it came to that address.
#[utoipa::path(post, path = "/v1/auth/register", tag = "auth", request_body = Registration,
    responses((status = 201, body = Registered), (status = 400, body = Problem), (status = 403, body = Problem),
              (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn register(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<Registration>,
) -> Result<impl IntoResponse> {
    anonymous.admit(&state.limiter.policies().signup, &anonymous.client.subject()).await?;
    let invitation = may_register(state.config.auth.signup, body.invitation_token.as_deref())?;
    let email = normalize_email(&body.email)?;
    let password = Passwords::normalize("password", &body.password, &email)?;
    if let Some(token) = &invitation {
        // Before the hashing, which is dear; it is used in the transaction.
        let (hash, now) = (token.hash(), state.clock.now());
        let find = async |c: &mut _| one_time_tokens::find(c, Purpose::Invite, &hash, now).await;
        let found = state.database.call("one_time_tokens.find", find).await?;
        found.filter(|t| t.email.as_deref() == Some(&email)).ok_or_else(invalid_invitation)?;
    }
    let hash = state.passwords.hash(password).await?;
    let id = Uuid::now_v7();
    state
        .database
        .transaction("users.insert", async |c| {
            insert(c, &state, &anonymous, id, (&email, &hash), invitation.as_ref()).await
        })
        .await?;
    Ok((StatusCode::CREATED, Json(Registered { id, email })))
}

/// Does this deployment take new accounts? Returns the invitation that was brought along.
fn may_register(signup: SignUp, token: Option<&str>) -> Result<Option<OneTimeToken>> {
    match (signup, token) {
        (SignUp::Closed, _) => {
            Err(Error::forbidden("signup_closed", "Sign-up is closed: ask the operator for an account."))
        }
        (SignUp::Invite, None) => {
            let detail = "Sign-up is by invitation: send the token of your invitation as `invitation_token`.";
            Err(Error::forbidden("invitation_required", detail))
        }
        (SignUp::Open, None) => Ok(None),
        (SignUp::Open | SignUp::Invite, Some(text)) => {
            OneTimeToken::parse(text).ok_or_else(invalid_invitation).map(Some)
        }
    }
}

fn invalid_invitation() -> Error {
    let detail = "The invitation is unknown, was used, taken back or has expired, or is for another address: ask for a new one.";
    Error::forbidden("invalid_invitation", detail)
}

async fn insert(
    c: &mut db::PgConnection,
    state: &AppState,
    anonymous: &Anonymous,
    id: Uuid,
    (email, password_hash): (&str, &str),
    invitation: Option<&OneTimeToken>,
) -> Result<()> {
    let mut accepted = None;
    let mut role = "user".to_owned();
    if let Some(token) = invitation {
        let now = state.clock.now();
        let used = one_time_tokens::consume(c, Purpose::Invite, &token.hash(), now).await?;
        let invitation_id = used.and_then(|t| t.invitation_id).ok_or_else(invalid_invitation)?;
        let given = db::invitations::accept(c, invitation_id, email, now).await?;
        role = given.ok_or_else(invalid_invitation)?;
        accepted = Some(invitation_id);
    }
    db::users::insert(c, id, email, password_hash, &role).await.map_err(|error| {
        match error.constraint() {
            Some("users_email_key") => {
                Error::conflict("email_taken", "There is an account with this address: log in instead.")
            }
            _ => error.into(),
        }
    })?;
    if accepted.is_some() {
        db::users::confirm_email(c, id, email).await?;
    } else {
        jobs::enqueue(c, &AccountMail::VerifyEmail { user_id: id }, EnqueueOptions::default()).await?;
    }
    let event = db::audit::Event {
        detail: json!({ "role": role, "invitation_id": accepted }),
        ..anonymous.event("registered", id)
    };
    Ok(db::audit::insert(c, &event).await?)
}
