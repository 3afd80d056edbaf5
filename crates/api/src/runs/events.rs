//! `GET /v1/runs/{id}/events`: a run as an event stream that can be taken up again, on any replica.

use ::runs::{EventId, Holder, Ticket};
use axum::{
    body::Body,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderName, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use limits::{Admission, Decision};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    SCOPE, find, redis_is_out,
    viewer::{Since, Viewer},
};
use crate::{
    AppState, Error, Result,
    admission::{Anonymous, Caller, Pending},
    auth::Credential,
    error::Problem,
    extract::{Path, Query},
    openapi::ServerSentEvent,
    stream_permit::StreamPermit,
};

/// The events of a run, from its begin, or after `Last-Event-ID`.
///
/// Pieces of the answer are events without a name, each with the engine's JSON. Besides there are `queued`, `started`, `restarted`
/// (what came before is void: a worker died or was replaced), `trimmed` (events are missing here: they are no longer kept),
/// `revoked` and, as the last one, `end` with state, error and usage. After that the answer is 204, which stops EventSource.
///
/// Instead of a credential a ticket of `POST /v1/runs/{id}/ticket` will do.
#[utoipa::path(get, path = "/v1/runs/{id}/events", tag = "runs",
    security(("bearer" = []), ("api_key" = []), ("ticket" = [])),
    params(("id" = Uuid, Path),
           ("ticket" = Option<String>, Query, description = "A ticket for this run, instead of a credential"),
           ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]{1,19}-[0-9]{1,19}$",
            description = "The `id` of the last event that was seen")),
    responses((status = 200, body = ServerSentEvent, content_type = "text/event-stream"),
              (status = 204, description = "The run has ended, and its last event was seen"),
              (status = 403, body = Problem)))]
pub(super) async fn events(
    State(state): State<AppState>,
    reader: Reader,
    id: Result<Path<Uuid>>,
    headers: HeaderMap,
) -> Result<Response> {
    let mut permit = StreamPermit::new(state.limiter.clone(), state.lifecycle.clone());
    let (caller, ticket) = reader.admit(&state, id.as_ref().ok().map(|Path(id)| *id), &mut permit).await?;
    caller.require_scope(SCOPE)?;
    let Path(id) = id?;
    let from = last_event_id(&headers)?;
    let run = find(&state, &caller, id).await?;
    if from == Since::End && run.ended_at.is_some() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let viewer = Viewer::new(state, caller, ticket, permit, id, from);
    let frames = stream::unfold(viewer, |mut viewer| async move {
        let frame = viewer.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), viewer))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(frames)).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Since> {
    let Some(value) = headers.get("last-event-id") else { return Ok(Since::Begin) };
    match value.to_str() {
        Ok("") => Ok(Since::Begin),
        Ok("end") => Ok(Since::End),
        Ok(text) if text.parse::<EventId>().is_ok() => Ok(text.parse().map_or(Since::Begin, Since::After)),
        _ => Err(Error::bad_request(
            "invalid_last_event_id",
            "Last-Event-ID is not the id of an event of this stream.",
        )),
    }
}

/// Who wants to read: somebody with a credential, or with a ticket.
pub(super) enum Reader {
    Credential(Box<Pending>),
    Ticket(String, Anonymous),
}

#[derive(Deserialize)]
struct TicketQuery {
    ticket: Option<String>,
}

impl FromRequestParts<AppState> for Reader {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self> {
        if parts.extensions.get::<Credential>().is_some() {
            let pending = Pending::from_request_parts(parts, state).await?;
            return Ok(Self::Credential(Box::new(pending)));
        }
        let Query(query) = Query::<TicketQuery>::from_request_parts(parts, state).await?;
        let ticket = query.ticket.ok_or_else(Error::missing_credentials)?;
        Ok(Self::Ticket(ticket, Anonymous::from_request_parts(parts, state).await?))
    }
}

impl Reader {
    async fn admit(
        self,
        state: &AppState,
        run: Option<Uuid>,
        permit: &mut StreamPermit,
    ) -> Result<(Caller, Option<Ticket>)> {
        let admitted = match self {
            Self::Credential(pending) => {
                let (caller, _) = pending.admit(|admission, caller| permit.add_to(admission, caller)).await?;
                (caller, None)
            }
            Self::Ticket(text, who) => {
                let (caller, ticket) = by_ticket(state, run, &text, &who).await?;
                let mut admission = Admission::default();
                admission.charge(caller.charge(&state.limiter.policies().global, 1));
                permit.add_to(&mut admission, &caller);
                match state.limiter.admit(&admission).await {
                    Decision::Admitted(_) => {}
                    Decision::Limited(limited) => return Err(Error::limited(&limited)),
                    _ => return Err(Error::internal(anyhow::anyhow!("a ticket has nothing to revoke here"))),
                }
                (caller, Some(ticket))
            }
        };
        permit.admitted();
        Ok(admitted)
    }
}

/// Who has this ticket. Whoever has a wrong one is charged to their address.
async fn by_ticket(
    state: &AppState,
    run: Option<Uuid>,
    text: &str,
    who: &Anonymous,
) -> Result<(Caller, Ticket)> {
    let holder = match run.zip(Ticket::parse(text)) {
        None => None,
        Some((run, ticket)) => {
            let holder = state.runs.events.ticket(run, &ticket).await.map_err(redis_is_out)?;
            holder.map(|holder| (caller(&holder, who), ticket))
        }
    };
    if let Some((caller, ticket)) = holder
        && caller.is_still_allowed(state).await?
    {
        return Ok((caller, ticket));
    }
    who.admit_globally().await?;
    metrics::counter!("auth_refused_total", "reason" => "ticket").increment(1);
    let detail = "The ticket is not for this run, has expired, or was revoked.";
    Err(Error::unauthorized("invalid_ticket", detail))
}

fn caller(holder: &Holder, who: &Anonymous) -> Caller {
    Caller {
        user_id: holder.user_id,
        session_id: holder.session_id,
        api_key_id: holder.api_key_id,
        api_key_public_id: None,
        role: "user".to_owned(),
        scopes: None,
        issued_at: 0,
        limits: std::sync::Arc::default(),
        client: who.client,
        request_id: who.request_id.clone(),
    }
}
