//! Webhooks from other systems.

mod receive;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(receive::receive))
}
