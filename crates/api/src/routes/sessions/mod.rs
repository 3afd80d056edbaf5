//! A user's sessions: where one is logged in, and an end to it.

mod delete;
mod list;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list::list)).routes(routes!(delete::delete))
}
