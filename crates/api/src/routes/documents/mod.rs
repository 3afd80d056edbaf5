//! Documents that users hand in. A job splits them and has the engine turn each piece into numbers (embeddings), for whoever
//! builds a search on them; there is none here.

mod create;
mod delete;
mod list;
mod show;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::AppState;

/// What an API key needs: embeddings cost what AI requests cost.
const SCOPE: &str = "ai";

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list::list, create::create))
        .routes(routes!(show::show, delete::delete))
}

/// A document, without its content.
#[derive(Serialize, ToSchema)]
pub(super) struct DocumentView {
    id: Uuid,
    title: String,
    /// `pending`, `ready` or `failed`.
    state: String,
    /// Why it failed.
    error: Option<String>,
    /// How many pieces it has; none before the first attempt.
    chunks: Option<i32>,
    /// How many of them are stored.
    chunks_stored: i64,
    /// The job that ingests it: `GET /v1/jobs/{id}/events` shows how far it is.
    job_id: Option<String>,
    created_at: DateTime<Utc>,
    ingested_at: Option<DateTime<Utc>>,
}

impl From<db::documents::Document> for DocumentView {
    fn from(document: db::documents::Document) -> Self {
        Self {
            id: document.id,
            title: document.title,
            state: document.state,
            error: document.error,
            chunks: document.chunk_count,
            chunks_stored: document.chunks_stored,
            job_id: document.job_id.map(|id| id.to_string()),
            created_at: document.created_at,
            ingested_at: document.ingested_at,
        }
    }
}
