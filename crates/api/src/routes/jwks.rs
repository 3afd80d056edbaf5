//! `GET /.well-known/jwks.json`: the public keys of access tokens, for services that verify them on their own.

use axum::{extract::State, http::header, response::IntoResponse};

use crate::{AppState, extract::Json};

/// The public keys of access tokens as a JWK set (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "auth", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn jwks(State(state): State<AppState>) -> impl IntoResponse {
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(state.keyring.jwks()))
}
