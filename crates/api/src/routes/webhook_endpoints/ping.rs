//! `POST /v1/webhook-endpoints/{id}/ping`.

use axum::{extract::State, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
};

#[derive(Serialize, ToSchema)]
pub(super) struct Pinged {
    /// The delivery: see the log of the endpoint.
    id: Uuid,
}

/// Sends a `ping` there, to try the endpoint out.
#[utoipa::path(post, path = "/v1/webhook-endpoints/{id}/ping", tag = "webhooks", security(("bearer" = [])),
    params(("id" = Uuid, Path)), responses((status = 202, body = Pinged), (status = 403, body = Problem)))]
pub(super) async fn ping(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<Pinged>)> {
    caller.require_session()?;
    let now = state.clock.now();
    let ping = async |c: &mut db::PgConnection| -> Result<_> {
        Ok(webhooks::ping(c, caller.user_id, id, now).await?)
    };
    let delivery = state.database.transaction("webhook_deliveries.ping", ping).await?;
    Ok((StatusCode::ACCEPTED, Json(Pinged { id: delivery.ok_or_else(Error::not_found)? })))
}
