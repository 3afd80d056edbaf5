//! `DELETE /v1/sessions/{id}`.

use axum::{extract::State, http::StatusCode};
use serde_json::json;
use uuid::Uuid;

use crate::{AppState, Error, Result, admission::Caller, auth::revocation, error::Problem, extract::Path};

/// Ends one of your sessions, within a second on every replica.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "auth", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 403, body = Problem),
              (status = 404, body = Problem)))]
pub(super) async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode> {
    caller.require_live_session(&state).await?;
    state.to_the_end(end(state.clone(), caller, id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn end(state: AppState, caller: Caller, id: Uuid) -> Result<()> {
    let ended = state
        .database
        .transaction::<_, db::Error>("sessions.revoke", async |c| {
            let ended = db::sessions::revoke_own(c, caller.user_id, id, "revoked by its user").await?;
            if ended {
                let event = db::audit::Event {
                    detail: json!({ "revoked_session_id": id }),
                    ..caller.event("session_revoked")
                };
                db::audit::insert(c, &event).await?;
            }
            Ok(ended)
        })
        .await?;
    if !ended {
        return Err(Error::not_found());
    }
    revocation::mark_session(&state, id).await;
    Ok(())
}
