//! `DELETE /v1/api-keys/{id}`.

use axum::{extract::State, http::StatusCode};
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    admission::{Caller, RECORD_TTL},
    auth::Record,
    error::Problem,
    extract::Path,
};

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
    let public_id = revoked.ok_or_else(Error::not_found)?;
    let dead = Record::nobody().encode().map_err(Error::internal)?;
    if let Err(error) = state.limiter.replace_record(&public_id, &dead, RECORD_TTL).await {
        tracing::warn!(%error, "the record of a revoked key stays in redis until it expires");
    }
    Ok(StatusCode::NO_CONTENT)
}
