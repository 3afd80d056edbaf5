//! The routes: one file per endpoint.

mod admin;
pub mod api_keys;
pub mod auth;
mod credentials;
mod documents;
pub mod jobs;
mod jwks;
mod me;
mod root;
mod sessions;
mod subscription;
mod webhook_endpoints;
mod webhooks;
mod whoami;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

/// Everything under `/v1` but the AI routes, and what is beside it.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(root::root))
        .routes(routes!(jwks::jwks))
        .routes(routes!(me::me))
        .routes(routes!(subscription::subscription))
        .routes(routes!(whoami::whoami))
        .merge(admin::router())
        .merge(auth::router())
        .merge(sessions::router())
        .merge(api_keys::router())
        .merge(credentials::router())
        .merge(documents::router())
        .merge(jobs::router())
        .merge(webhooks::router())
        .merge(webhook_endpoints::router())
}
