//! What administrators see.

mod cron;
mod queues;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(cron::cron)).routes(routes!(queues::queues))
}
