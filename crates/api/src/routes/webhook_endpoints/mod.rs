//! Where users want to be told of events: register, list, try out, forget, and see what was sent. Only people may: an API key
//! that leaked must not send its owner's events elsewhere.

mod create;
mod delete;
mod deliveries;
mod list;
mod ping;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list::list, create::create))
        .routes(routes!(delete::delete))
        .routes(routes!(ping::ping))
        .routes(routes!(deliveries::deliveries))
}

/// An endpoint, without its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct EndpointView {
    id: Uuid,
    url: String,
    /// Types of events that are sent there; empty means all.
    event_types: Vec<String>,
    created_at: DateTime<Utc>,
    /// When it answered 410 Gone: nothing is sent there any more.
    disabled_at: Option<DateTime<Utc>>,
}

impl From<db::webhook_endpoints::Endpoint> for EndpointView {
    fn from(endpoint: db::webhook_endpoints::Endpoint) -> Self {
        Self {
            id: endpoint.id,
            url: endpoint.url,
            event_types: endpoint.event_types,
            created_at: endpoint.created_at,
            disabled_at: endpoint.disabled_at,
        }
    }
}
