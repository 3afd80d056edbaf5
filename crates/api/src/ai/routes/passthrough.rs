//! `POST /v1/ai/{*path}`: for an engine with routes and an event stream of its own, such as a FastAPI service.

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{OpenAiError, bodies::AnyRequest};
use crate::{
    AppState, Error,
    admission::Pending,
    ai::{Protocol, failure::Failure, proxy},
    extract::Path,
    openapi::ServerSentEvent,
};

/// Forwards a JSON body to the same path below the engine's base URL, and the answer back, whatever it is.
///
/// An event stream is forwarded event by event, ids and names included. Say `Accept: text/event-stream` to get the head and
/// heartbeats while the engine is still silent. After a stream has begun, an error is its last event (`event: error`).
#[utoipa::path(post, path = "/v1/ai/{*path}", tag = "ai", security(("bearer" = []), ("api_key" = [])),
    params(("path" = String, Path, description = "Path below the engine's base URL")),
    request_body = AnyRequest,
    responses((status = 200, description = "As the engine answers", content((Value = "application/json"), (ServerSentEvent = "text/event-stream"))),
              (status = 400, body = OpenAiError), (status = 401, body = OpenAiError), (status = 404, body = OpenAiError),
              (status = 413, body = OpenAiError), (status = 429, body = OpenAiError), (status = 502, body = OpenAiError),
              (status = 503, body = OpenAiError), (status = 504, body = OpenAiError)))]
pub(super) async fn passthrough(
    State(state): State<AppState>,
    Path(path): Path<String>,
    pending: Pending,
    request: Request,
) -> Result<Response, Failure> {
    let segments = proxy::segments(&path).ok_or_else(Error::not_found)?;
    let path = std::iter::once("ai").chain(segments);
    proxy::forward(&state.ai, Protocol::Passthrough, path, pending, request).await
}
