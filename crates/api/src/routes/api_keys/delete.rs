//! `DELETE /v1/api-keys/{id}`.

use axum::{extract::State, http::StatusCode};
use uuid::Uuid;

use crate::{AppState, Error, Result, admission::Caller, auth::revocation, error::Problem, extract::Path};

/// Revokes a key, within a second on every replica.
#[utoipa::path(delete, path = "/v1/api-keys/{id}", tag = "api keys", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode> {
    let session_id = caller.require_live_session(&state).await?;
    state.to_the_end(revoke(state.clone(), caller, session_id, id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn revoke(state: AppState, caller: Caller, session_id: Uuid, id: Uuid) -> Result<()> {
    let revoked = state
        .database
        .transaction::<_, db::Error>("api_keys.revoke", async |c| {
            let Some(public_id) = db::api_keys::revoke(c, caller.user_id, id).await? else { return Ok(None) };
            let event = db::audit::Event {
                event: "api_key_revoked",
                user_id: Some(caller.user_id),
                session_id: Some(session_id),
                ip: Some(caller.client.0),
                request_id: Some(&caller.request_id),
                detail: serde_json::json!({ "api_key_id": id }),
            };
            db::audit::insert(c, &event).await?;
            Ok(Some(public_id))
        })
        .await?;
    revocation::mark_key(&state, &revoked.ok_or_else(Error::not_found)?).await
}
