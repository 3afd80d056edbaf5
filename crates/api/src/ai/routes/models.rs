//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::{extract::State, http::HeaderMap, response::Response};

use super::OpenAiError;
use crate::{
    AppState,
    admission::Caller,
    ai::{Ai, failure::Failure, proxy},
    extract::Path,
};

/// The engines' models.
#[utoipa::path(get, path = "/v1/models", tag = "ai", security(("bearer" = []), ("api_key" = [])),
    responses((status = 200, body = Value), (status = 401, body = OpenAiError), (status = 429, body = OpenAiError),
              (status = 502, body = OpenAiError), (status = 503, body = OpenAiError), (status = 504, body = OpenAiError)))]
pub(super) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    ask(&state.ai, &caller, &headers, None).await
}

/// One of the engines' models. The id may contain slashes.
#[utoipa::path(get, path = "/v1/models/{*id}", tag = "ai", security(("bearer" = []), ("api_key" = [])),
    params(("id" = String, Path, description = "Name of the model")),
    responses((status = 200, body = Value), (status = 401, body = OpenAiError), (status = 404, body = OpenAiError),
              (status = 429, body = OpenAiError), (status = 502, body = OpenAiError), (status = 503, body = OpenAiError),
              (status = 504, body = OpenAiError)))]
pub(super) async fn get(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    ask(&state.ai, &caller, &headers, Some(&id)).await
}

async fn ask(ai: &Ai, caller: &Caller, headers: &HeaderMap, id: Option<&str>) -> Result<Response, Failure> {
    caller.require_scope(proxy::SCOPE)?;
    proxy::models(ai, id, headers, &caller.request_id).await
}
