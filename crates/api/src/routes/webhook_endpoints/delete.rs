//! `DELETE /v1/webhook-endpoints/{id}`.

use axum::{extract::State, http::StatusCode};
use uuid::Uuid;

use crate::{AppState, Error, Result, admission::Caller, error::Problem, extract::Path};

/// Forgets an endpoint and what was sent to it; deliveries that wait are not made any more.
#[utoipa::path(delete, path = "/v1/webhook-endpoints/{id}", tag = "webhooks", security(("bearer" = [])),
    params(("id" = Uuid, Path)), responses((status = 204), (status = 403, body = Problem)))]
pub(super) async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode> {
    let session_id = caller.require_live_session(&state).await?;
    let event = db::audit::Event {
        event: "webhook_endpoint_deleted",
        user_id: Some(caller.user_id),
        session_id: Some(session_id),
        ip: Some(caller.client.0),
        request_id: Some(&caller.request_id),
        detail: serde_json::json!({ "id": id }),
    };
    let delete = async |c: &mut db::PgConnection| -> Result<bool> {
        let deleted = db::webhook_endpoints::delete(c, caller.user_id, id).await?;
        if deleted {
            db::audit::insert(c, &event).await?;
        }
        Ok(deleted)
    };
    let deleted = state.database.transaction("webhook_endpoints.delete", delete).await?;
    if deleted { Ok(StatusCode::NO_CONTENT) } else { Err(Error::not_found()) }
}
