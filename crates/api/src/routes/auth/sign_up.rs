//! `POST /v1/auth/sign-up`: the first step to an account.

use axum::{extract::State, response::IntoResponse};
use config::SignUp as Mode;
use job_specs::AccountMail;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{OnItsWay, ask_for_mail, invitation_required, normalize_email, signup_closed};
use crate::{AppState, Result, admission::Anonymous, error::Problem, extract::Json};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ann@example.com"}))]
pub(super) struct SignUp {
    /// The address of the new account.
    email: String,
}

/// Mails a token with which `POST /v1/auth/register` makes an account, where sign-up is open. The same answer, in the same
/// time, when there is an account with this address: then the mail says so. Which it is is only looked up later, by a job.
#[utoipa::path(post, path = "/v1/auth/sign-up", tag = "auth", request_body = SignUp,
    responses((status = 202, body = OnItsWay), (status = 400, body = Problem), (status = 403, body = Problem),
              (status = 422, body = Problem)))]
pub(super) async fn sign_up(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<SignUp>,
) -> Result<impl IntoResponse> {
    // Per address of the client. How many mails one mailbox gets is for the job to say, which counts whoever asks.
    anonymous.admit(&state.limiter.policies().signup, &anonymous.client.subject()).await?;
    match state.config.auth.signup {
        Mode::Open => {}
        Mode::Invite => return Err(invitation_required()),
        Mode::Closed => return Err(signup_closed()),
    }
    let email = normalize_email(&body.email)?;
    let message = "A mail is on its way to this address. It says how to go on.";
    ask_for_mail(&state, &anonymous, email, AccountMail::SignUp, message).await
}
