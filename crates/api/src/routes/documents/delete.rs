//! `DELETE /v1/documents/{id}`.

use axum::{extract::State, http::StatusCode};
use uuid::Uuid;

use super::SCOPE;
use crate::{AppState, Error, Result, admission::Caller, error::Problem, extract::Path};

/// Deletes a document and its pieces, also while it is being ingested: its job ends.
#[utoipa::path(delete, path = "/v1/documents/{id}", tag = "documents", security(("bearer" = []), ("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode> {
    caller.require_scope(SCOPE)?;
    let delete = async |c: &mut db::PgConnection| -> Result<()> {
        let job = db::documents::delete(c, caller.user_id, id).await?.ok_or_else(Error::not_found)?;
        if let Some(job) = job {
            jobs::cancel(c, job).await?;
        }
        Ok(())
    };
    state.database.transaction("documents.delete", delete).await?;
    Ok(StatusCode::NO_CONTENT)
}
