//! `POST /v1/auth/register`: a new account.

use axum::{extract::State, http::StatusCode, response::IntoResponse};
use config::SignUp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{EmailAndPassword, normalize_email};
use crate::{AppState, Error, Result, admission::Anonymous, auth::Passwords, error::Problem, extract::Json};

#[derive(Serialize, ToSchema)]
pub(super) struct Registered {
    id: Uuid,
    email: String,
}

/// Makes an account, where sign-up is open. Log in afterwards.
#[utoipa::path(post, path = "/v1/auth/register", tag = "auth", request_body = EmailAndPassword,
    responses((status = 201, body = Registered), (status = 403, body = Problem), (status = 409, body = Problem),
              (status = 422, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn register(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Json(body): Json<EmailAndPassword>,
) -> Result<impl IntoResponse> {
    anonymous.admit(&state.limiter.policies().signup, &format!("ip:{}", anonymous.client.bucket())).await?;
    if state.config.auth.signup == SignUp::Closed {
        return Err(Error::forbidden("signup_closed", "Sign-up is closed: ask the operator for an account."));
    }
    let email = normalize_email(&body.email)?;
    let password = Passwords::normalize("password", &body.password)?;
    let hash = state.passwords.hash(password).await?;
    let id = Uuid::now_v7();
    let inserted = state
        .database
        .transaction::<_, db::Error>("users.insert", async |c| {
            let user = db::users::insert(c, id, &email, &hash, "user").await?;
            let event = db::audit::Event {
                event: "registered",
                user_id: Some(id),
                ip: Some(anonymous.client.0),
                request_id: Some(&anonymous.request_id),
                ..Default::default()
            };
            db::audit::insert(c, &event).await?;
            Ok(user)
        })
        .await;
    match inserted {
        Ok(user) => Ok((StatusCode::CREATED, Json(Registered { id: user.id, email: user.email }))),
        Err(error) if error.constraint() == Some("users_email_key") => {
            Err(Error::conflict("email_taken", "There is an account with this address: log in instead."))
        }
        Err(error) => Err(error.into()),
    }
}
