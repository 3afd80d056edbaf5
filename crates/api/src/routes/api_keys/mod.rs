//! API keys: list, make, revoke. Only people may: a key cannot mint keys.

mod create;
mod delete;
mod list;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::AppState;

/// What a key may be allowed to do.
pub const SCOPES: [&str; 2] = ["ai", "jobs"];

/// Keys that one user may have at a time.
const MOST: i64 = 100;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list::list, create::create)).routes(routes!(delete::delete))
}

/// A key, without its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct ApiKeyView {
    id: Uuid,
    name: String,
    /// How the key begins, to tell it from others.
    starts_with: String,
    scopes: Vec<String>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

impl From<db::api_keys::ApiKey> for ApiKeyView {
    fn from(key: db::api_keys::ApiKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            starts_with: format!("blst_{}", key.public_id),
            scopes: key.scopes,
            created_at: key.created_at,
            expires_at: key.expires_at,
            last_used_at: key.last_used_at,
            revoked_at: key.revoked_at,
        }
    }
}
