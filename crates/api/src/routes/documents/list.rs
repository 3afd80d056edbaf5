//! `GET /v1/documents`.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{DocumentView, SCOPE};
use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Query},
};

/// The largest page.
const MAX_PAGE: u16 = 200;

/// Which documents.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Older than the document with this id: `next` of the page before.
    before: Option<Uuid>,
    /// At most so many, 1 to 200; without it 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// One page of documents, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct DocumentPage {
    data: Vec<DocumentView>,
    /// Ask for the next page with this as `before`; none when this was the last one.
    next: Option<Uuid>,
}

/// Your documents, newest first.
#[utoipa::path(get, path = "/v1/documents", tag = "documents", security(("bearer" = []), ("api_key" = [])),
    params(Wanted),
    responses((status = 200, body = DocumentPage), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    Query(wanted): Query<Wanted>,
) -> Result<Json<DocumentPage>> {
    caller.require_scope(SCOPE)?;
    let limit = wanted.limit.unwrap_or(50);
    if limit == 0 || limit > MAX_PAGE {
        return Err(Error::invalid("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    // One more than asked for tells whether there is another page.
    let list = async |c: &mut db::PgConnection| {
        db::documents::list(c, caller.user_id, wanted.before, i64::from(limit) + 1).await
    };
    let mut found = state.database.call("documents.list", list).await?;
    let more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = found.last().filter(|_| more).map(|document| document.id);
    Ok(Json(DocumentPage { data: found.into_iter().map(DocumentView::from).collect(), next }))
}
