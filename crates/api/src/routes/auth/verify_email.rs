//! `POST /v1/auth/verify-email`: the address belongs to the account.

use axum::{extract::State, http::StatusCode};
use db::one_time_tokens::{self, OneTimeToken, Purpose};
use serde::Deserialize;
use utoipa::ToSchema;

use super::invalid_one_time_token;
use crate::{AppState, Error, Result, admission::Anonymous, error::Problem, extract::Json};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"token": "as it came by mail"}))]
pub(super) struct VerifyEmail {
    /// As it came by mail.
    token: String,
}

/// Confirms an e-mail address with the token that was mailed to it. Each works once.
#[utoipa::path(post, path = "/v1/auth/verify-email", tag = "auth", request_body = VerifyEmail,
    responses((status = 204), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn verify_email(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<VerifyEmail>,
) -> Result<StatusCode> {
    anonymous.admit(&state.limiter.policies().refresh, &anonymous.client.subject()).await?;
    let token = OneTimeToken::parse(&body.token).ok_or_else(invalid_one_time_token)?;
    let (hash, now) = (token.hash(), state.clock.now());
    state
        .database
        .transaction::<_, Error>("users.confirm_email", async |c| {
            let found = one_time_tokens::find(c, Purpose::VerifyEmail, &hash, now).await?;
            let (user_id, email) =
                found.and_then(|t| t.user_id.zip(t.email)).ok_or_else(invalid_one_time_token)?;
            db::users::lock(c, user_id).await?;
            let used = one_time_tokens::consume(c, Purpose::VerifyEmail, &hash, now).await?;
            if used.is_none() || !db::users::confirm_email(c, user_id, &email).await? {
                return Err(invalid_one_time_token());
            }
            Ok(db::audit::insert(c, &anonymous.event("email_verified", user_id)).await?)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
