//! The routes: one file per endpoint.

mod bodies;
mod chat;
mod embeddings;
mod models;
mod passthrough;
mod responses;
mod usage;

use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

pub(crate) use self::usage::DayUsage;

/// The AI routes and the usage they cause.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(chat::chat_completions))
        .routes(routes!(responses::responses))
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(models::list))
        .routes(routes!(models::get))
        .routes(routes!(passthrough::passthrough))
        .routes(routes!(usage::usage))
}

/// OpenAI's error object, for the API's description.
#[derive(Serialize, ToSchema)]
struct OpenAiError {
    error: OpenAiErrorBody,
}

/// What is in it.
#[derive(Serialize, ToSchema)]
struct OpenAiErrorBody {
    /// What happened and what to do.
    message: String,
    /// The class, as the SDKs know it.
    r#type: String,
    /// The field that is wrong.
    param: Option<String>,
    /// Stable name of this kind of error.
    code: Option<String>,
    /// To be quoted to support; absent where the engine refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}
