//! Invitations to register.

mod create;
mod list;
mod revoke;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list::list, create::create)).routes(routes!(revoke::revoke))
}

/// An invitation, without its token, which is in the mail and nowhere else.
#[derive(Serialize, ToSchema)]
pub(super) struct InvitationView {
    id: Uuid,
    email: String,
    /// The role that the new account gets.
    role: String,
    /// `open`, `accepted`, `revoked` or `expired`.
    status: &'static str,
    /// Which administrator made it; none when that account is gone.
    invited_by: Option<Uuid>,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl InvitationView {
    fn new(invitation: db::invitations::Invitation, now: DateTime<Utc>) -> Self {
        let status = match (invitation.accepted_at, invitation.revoked_at) {
            (Some(_), _) => "accepted",
            (None, Some(_)) => "revoked",
            (None, None) if invitation.expires_at <= now => "expired",
            (None, None) => "open",
        };
        Self {
            id: invitation.id,
            email: invitation.email,
            role: invitation.role,
            status,
            invited_by: invitation.invited_by,
            created_at: invitation.created_at,
            expires_at: invitation.expires_at,
        }
    }
}
