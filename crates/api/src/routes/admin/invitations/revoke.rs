//! `DELETE /v1/admin/invitations/{id}`.

use axum::{extract::State, http::StatusCode};
use serde_json::json;
use uuid::Uuid;

use crate::{AppState, Error, Result, admission::Admin, error::Problem, extract::Path};

/// Takes an open invitation back: its token works no more.
#[utoipa::path(delete, path = "/v1/admin/invitations/{id}", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 403, body = Problem),
              (status = 404, body = Problem)))]
pub(super) async fn revoke(
    State(state): State<AppState>,
    Admin(caller): Admin,
    Path(id): Path<Uuid>,
) -> Result<StatusCode> {
    let revoked = state
        .database
        .transaction::<_, db::Error>("invitations.revoke", async |c| {
            let revoked = db::invitations::revoke(c, id).await?;
            if revoked {
                let event = db::audit::Event {
                    detail: json!({ "invitation_id": id }),
                    ..caller.event("invitation_revoked")
                };
                db::audit::insert(c, &event).await?;
            }
            Ok(revoked)
        })
        .await?;
    if revoked { Ok(StatusCode::NO_CONTENT) } else { Err(Error::not_found()) }
}
