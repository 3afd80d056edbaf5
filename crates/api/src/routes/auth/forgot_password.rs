//! `POST /v1/auth/password/forgot`: a way back for who forgot the password.

use axum::{extract::State, response::IntoResponse};
use job_specs::AccountMail;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{OnItsWay, ask_for_mail, normalize_email, pseudonym};
use crate::{AppState, Result, admission::Anonymous, error::Problem, extract::Json};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ann@example.com"}))]
pub(super) struct ForgotPassword {
    /// The account's address.
    email: String,
}

/// Mails a token to set a new password, if there is an account with this address. The same answer, in the same time, if not:
/// whether there is one is only looked up later, by a job.
#[utoipa::path(post, path = "/v1/auth/password/forgot", tag = "auth", request_body = ForgotPassword,
    responses((status = 202, body = OnItsWay), (status = 400, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn forgot_password(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<ForgotPassword>,
) -> Result<impl IntoResponse> {
    let email = normalize_email(&body.email)?;
    let subject = format!("{}:{}", anonymous.client.bucket(), pseudonym(&state, &email));
    anonymous.admit(&state.limiter.policies().account_mail, &subject).await?;
    let message = "If there is an account with this address, a mail is on its way to it.";
    ask_for_mail(&state, &anonymous, email, AccountMail::ResetPassword, message).await
}
