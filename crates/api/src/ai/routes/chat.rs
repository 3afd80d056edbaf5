//! `POST /v1/chat/completions`.

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{OpenAiError, bodies::ChatRequest};
use crate::{
    AppState,
    admission::Pending,
    ai::{Protocol, failure::Failure, proxy},
    openapi::ServerSentEvent,
};

/// Chat completions, in one piece or as an event stream (`"stream": true`), as in the OpenAI API.
///
/// The body goes to the engine as it is. A stream is forwarded event by event as it comes; after it has begun, an error is its
/// last event (`data: {"error": ...}`) and no `[DONE]` follows.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "ai", security(("bearer" = []), ("api_key" = [])),
    params(("X-AI-Cache" = Option<String>, Header, pattern = "^(on|off|refresh)$",
            description = "Whether an answer in one piece may be one that is kept, and is to be kept")),
    request_body = ChatRequest,
    responses((status = 200, description = "JSON, or `text/event-stream`", content((Value = "application/json"), (ServerSentEvent = "text/event-stream"))),
              (status = 400, body = OpenAiError), (status = 401, body = OpenAiError), (status = 413, body = OpenAiError),
              (status = 429, body = OpenAiError), (status = 502, body = OpenAiError), (status = 503, body = OpenAiError),
              (status = 504, body = OpenAiError)))]
pub(super) async fn chat_completions(
    State(state): State<AppState>,
    pending: Pending,
    request: Request,
) -> Result<Response, Failure> {
    proxy::forward(&state.ai, Protocol::Chat, ["chat", "completions"], pending, request).await
}
