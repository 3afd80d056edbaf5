//! `POST /v1/responses`.

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{OpenAiError, bodies::ResponsesRequest};
use crate::{
    AppState,
    admission::Pending,
    ai::{Protocol, failure::Failure, proxy},
    openapi::ServerSentEvent,
};

/// Responses, in one piece or as an event stream (`"stream": true`), as in the OpenAI API.
///
/// The body goes to the engine as it is. After a stream has begun, an error is its last event (`event: error`).
#[utoipa::path(post, path = "/v1/responses", tag = "ai", security(("bearer" = []), ("api_key" = [])),
    params(("X-AI-Cache" = Option<String>, Header, pattern = "^(on|off|refresh)$",
            description = "Whether an answer in one piece may be one that is kept, and is to be kept")),
    request_body = ResponsesRequest,
    responses((status = 200, description = "JSON, or `text/event-stream`", content((Value = "application/json"), (ServerSentEvent = "text/event-stream"))),
              (status = 400, body = OpenAiError), (status = 401, body = OpenAiError), (status = 413, body = OpenAiError),
              (status = 429, body = OpenAiError), (status = 502, body = OpenAiError), (status = 503, body = OpenAiError),
              (status = 504, body = OpenAiError)))]
pub(super) async fn responses(
    State(state): State<AppState>,
    pending: Pending,
    request: Request,
) -> Result<Response, Failure> {
    proxy::forward(&state.ai, Protocol::Responses, ["responses"], pending, request).await
}
