//! `GET /v1/documents/{id}`.

use axum::extract::State;
use uuid::Uuid;

use super::{DocumentView, SCOPE};
use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
};

/// One of your documents: how far its ingestion is, or why it failed.
#[utoipa::path(get, path = "/v1/documents/{id}", tag = "documents", security(("bearer" = []), ("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = DocumentView), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn show(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<DocumentView>> {
    caller.require_scope(SCOPE)?;
    let find = async |c: &mut db::PgConnection| db::documents::find(c, caller.user_id, id).await;
    let document = state.database.call("documents.find", find).await?.ok_or_else(Error::not_found)?;
    Ok(Json(document.into()))
}
