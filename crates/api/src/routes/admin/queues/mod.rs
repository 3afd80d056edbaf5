//! Queues: how they are doing, and holding them up.

mod list;
mod pause;
mod resume;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list::list))
        .routes(routes!(pause::pause))
        .routes(routes!(resume::resume))
}
