//! `GET /v1/admin/api-keys/{id}/limits`.

use axum::extract::State;
use uuid::Uuid;

use super::KeyLimits;
use crate::{
    AppState, Error, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Path},
};

/// The limits of its own that an API key has.
#[utoipa::path(get, path = "/v1/admin/api-keys/{id}/limits", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = KeyLimits), (status = 403, body = Problem)))]
pub(super) async fn show(
    State(state): State<AppState>,
    _: Admin,
    Path(id): Path<Uuid>,
) -> Result<Json<KeyLimits>> {
    let stored = state.database.call("api_keys.limits", async |c| db::api_keys::limits(c, id).await).await?;
    Ok(Json(KeyLimits::from_stored(&stored.ok_or_else(Error::not_found)?)))
}
