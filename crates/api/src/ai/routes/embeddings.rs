//! `POST /v1/embeddings`.

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{OpenAiError, bodies::EmbeddingsRequest};
use crate::{
    AppState,
    admission::Pending,
    ai::{Protocol, failure::Failure, proxy},
};

/// Embeddings, as in the OpenAI API.
#[utoipa::path(post, path = "/v1/embeddings", tag = "ai", security(("bearer" = []), ("api_key" = [])),
    params(("X-AI-Cache" = Option<String>, Header, pattern = "^(on|off|refresh)$",
            description = "Whether an answer in one piece may be one that is kept, and is to be kept")),
    request_body = EmbeddingsRequest,
    responses((status = 200, body = Value), (status = 400, body = OpenAiError), (status = 401, body = OpenAiError),
              (status = 413, body = OpenAiError), (status = 429, body = OpenAiError), (status = 502, body = OpenAiError),
              (status = 503, body = OpenAiError), (status = 504, body = OpenAiError)))]
pub(super) async fn embeddings(
    State(state): State<AppState>,
    pending: Pending,
    request: Request,
) -> Result<Response, Failure> {
    proxy::forward(&state.ai, Protocol::Embeddings, ["embeddings"], pending, request).await
}
