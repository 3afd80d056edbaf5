//! `POST` and `DELETE /v1/runs/{id}/ticket`.

use ::runs::{Holder, Ticket};
use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{SCOPE, find, redis_is_out};
use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
};

/// A ticket, and where to use it.
#[derive(Serialize, ToSchema)]
pub(super) struct TicketBody {
    /// Shown once.
    ticket: String,
    /// For EventSource, below the API's address.
    url: String,
}

/// Makes a ticket for EventSource, which cannot send headers: it lets whoever has it read the events of this one run.
///
/// It is good until the run's events are gone, an hour after the last one, for any number of connections. It ends with the
/// session or API key that asked for it, and when it is revoked.
#[utoipa::path(post, path = "/v1/runs/{id}/ticket", tag = "runs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 201, body = TicketBody), (status = 403, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<impl IntoResponse> {
    caller.require_scope(SCOPE)?;
    find(&state, &caller, id).await?;
    let ticket = Ticket::generate()
        .ok_or_else(|| Error::internal(anyhow::anyhow!("no randomness from the system")))?;
    let Caller { user_id, session_id, api_key_id, .. } = caller;
    let holder = Holder { user_id, session_id, api_key_id };
    if !state.runs.events.add_ticket(id, &ticket, &holder).await.map_err(redis_is_out)? {
        let detail = "This run has too many tickets: use one of them, or revoke them all.";
        return Err(Error::conflict("too_many_tickets", detail));
    }
    let ticket = ticket.text();
    let url = format!("/v1/runs/{id}/events?ticket={ticket}");
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::CREATED, no_store, Json(TicketBody { ticket, url })))
}

/// Revokes all tickets of a run. Streams that were opened with one end within seconds.
#[utoipa::path(delete, path = "/v1/runs/{id}/ticket", tag = "runs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204, description = "None is good any more"), (status = 403, body = Problem)))]
pub(super) async fn revoke(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode> {
    caller.require_scope(SCOPE)?;
    find(&state, &caller, id).await?;
    state.runs.events.revoke_tickets(id).await.map_err(redis_is_out)?;
    Ok(StatusCode::NO_CONTENT)
}
