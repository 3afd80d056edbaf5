//! `GET /`: what this is and where to go, for whoever opens it in a browser.

use serde::Serialize;
use utoipa::ToSchema;

use crate::extract::Json;

#[derive(Serialize, ToSchema)]
pub(super) struct Root {
    name: &'static str,
    version: &'static str,
    docs: &'static str,
    openapi: &'static str,
    health: &'static str,
}

/// Names the service.
#[utoipa::path(get, path = "/", tag = "meta", responses((status = 200, body = Root)))]
pub(super) async fn root() -> Json<Root> {
    Json(Root {
        name: "ballast",
        version: env!("CARGO_PKG_VERSION"),
        docs: "/docs",
        openapi: "/openapi.json",
        health: "/health",
    })
}
