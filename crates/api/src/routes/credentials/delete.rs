//! `DELETE /v1/credentials/{id}`.

use axum::{extract::State, http::StatusCode};
use uuid::Uuid;

use crate::{AppState, Error, Result, admission::Caller, error::Problem, extract::Path};

/// Forgets a credential: its secret is gone for good. Jobs that wait for it fail.
#[utoipa::path(delete, path = "/v1/credentials/{id}", tag = "credentials", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode> {
    let session_id = caller.require_live_session(&state).await?;
    let found = state
        .database
        .transaction::<_, db::Error>("credentials.delete", async |c| {
            if !db::credentials::delete(c, caller.user_id, id).await? {
                return Ok(false);
            }
            let event = db::audit::Event {
                event: "credential_deleted",
                user_id: Some(caller.user_id),
                session_id: Some(session_id),
                ip: Some(caller.client.0),
                request_id: Some(&caller.request_id),
                detail: serde_json::json!({ "id": id }),
            };
            db::audit::insert(c, &event).await?;
            Ok(true)
        })
        .await?;
    if found { Ok(StatusCode::NO_CONTENT) } else { Err(Error::not_found()) }
}
