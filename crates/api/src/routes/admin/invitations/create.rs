//! `POST /v1/admin/invitations`.

use axum::{extract::State, http::StatusCode, response::IntoResponse};
use chrono::TimeDelta;
use config::SignUp;
use job_specs::AccountMail;
use jobs::EnqueueOptions;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::InvitationView;
use crate::{
    AppState, Error, Result, admission::Admin, error::Problem, extract::Json, routes::auth::normalize_email,
};

const TTL: TimeDelta = TimeDelta::days(7);

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ann@example.com", "role": "user"}))]
pub(super) struct NewInvitation {
    /// Who may register with it.
    email: String,
    /// The role that the new account gets.
    #[serde(default)]
    role: Role,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Role {
    #[default]
    User,
    Admin,
}

/// Invites somebody by mail. The token works once, for seven days. An open invitation of the same address is revoked.
#[utoipa::path(post, path = "/v1/admin/invitations", tag = "admin", security(("bearer" = [])),
    request_body = NewInvitation,
    responses((status = 201, body = InvitationView), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    Admin(caller): Admin,
    Json(body): Json<NewInvitation>,
) -> Result<impl IntoResponse> {
    if state.config.auth.signup == SignUp::Closed {
        let detail = "Sign-up is closed, so nobody could use an invitation: set SIGNUP=invite.";
        return Err(Error::conflict("signup_closed", detail));
    }
    let email = normalize_email(&body.email)?;
    let role = match body.role {
        Role::User => "user",
        Role::Admin => "admin",
    };
    let (id, now) = (Uuid::now_v7(), state.clock.now());
    let invitation = state
        .database
        .transaction::<_, Error>("invitations.insert", async |c| {
            if db::users::find_by_email(c, &email).await?.is_some() {
                return Err(Error::conflict("email_taken", "There is an account with this address."));
            }
            let invitation = db::invitations::insert(c, id, &email, role, caller.user_id, now + TTL)
                .await
                .map_err(|error| match error.constraint() {
                    Some("invitation_open") => {
                        Error::conflict("invited_already", "Somebody else just invited this address.")
                    }
                    _ => error.into(),
                })?;
            let mail = AccountMail::Invite { invitation_id: id };
            jobs::enqueue(c, &mail, EnqueueOptions::default()).await?;
            let event = db::audit::Event {
                detail: json!({ "invitation_id": id, "role": role }),
                ..caller.event("invitation_created")
            };
            db::audit::insert(c, &event).await?;
            Ok(invitation)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(InvitationView::new(invitation, now))))
}
