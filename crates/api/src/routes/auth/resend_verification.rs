//! `POST /v1/auth/verify-email/resend`: the mail to confirm one's address, again.

use axum::{extract::State, http::StatusCode};
use job_specs::AccountMail;
use jobs::EnqueueOptions;

use crate::{AppState, Error, Result, admission::Pending, error::Problem};

/// Mails a new token to confirm your address; the old one ends. Nothing is sent when the address is confirmed already.
#[utoipa::path(post, path = "/v1/auth/verify-email/resend", tag = "auth", security(("bearer" = [])),
    responses((status = 202), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn resend_verification(
    State(state): State<AppState>,
    pending: Pending,
) -> Result<StatusCode> {
    let policy = &state.limiter.policies().account_mail;
    let (caller, _) = pending
        .admit(|admission, caller| {
            admission.charge(policy.charge(format!("user:{}", caller.user_id), 1));
        })
        .await?;
    caller.require_session()?;
    let mail = AccountMail::VerifyEmail { user_id: caller.user_id };
    state
        .database
        .transaction::<_, Error>("jobs.enqueue", async |c| {
            Ok(jobs::enqueue(c, &mail, EnqueueOptions::default()).await?)
        })
        .await?;
    Ok(StatusCode::ACCEPTED)
}
