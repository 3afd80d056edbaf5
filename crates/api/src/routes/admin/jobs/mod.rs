//! Jobs of everybody: looking at them and steering them. `ballast jobs` does the same without the API.

mod cancel;
mod create;
mod list;
mod retry;
mod show;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list::list, create::create))
        .routes(routes!(show::show))
        .routes(routes!(retry::retry))
        .routes(routes!(cancel::cancel))
}
