//! Credentials of other systems that users store for their jobs: make, list, forget. A secret goes in and never comes out:
//! only jobs read it (`worker::Context::open_credential`). Only people may: an API key that leaked must not be able to
//! replace what jobs log in with.

mod create;
mod delete;
mod list;

use axum::extract::DefaultBodyLimit;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::AppState;

/// Secrets are at most 4 KiB.
const MAX_BODY: usize = 8 * 1024;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list::list, create::create))
        .routes(routes!(delete::delete))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// A stored credential, without its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct CredentialView {
    id: Uuid,
    name: String,
    provider: String,
    /// The last four characters, when the secret is long enough to show them.
    ends_with: Option<String>,
    /// `unchecked`, `ok` or `failed`: whether the provider accepts it.
    status: String,
    /// Why it failed.
    status_detail: Option<String>,
    checked_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl From<db::credentials::Credential> for CredentialView {
    fn from(credential: db::credentials::Credential) -> Self {
        Self {
            id: credential.id,
            name: credential.name,
            provider: credential.provider,
            ends_with: credential.ends_with,
            status: credential.status,
            status_detail: credential.status_detail,
            checked_at: credential.checked_at,
            created_at: credential.created_at,
        }
    }
}
