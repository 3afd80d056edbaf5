//! `POST /v1/documents`.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use job_specs::IngestDocument;
use jobs::EnqueueOptions;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{DocumentView, SCOPE};
use crate::{AppState, Error, Result, admission::Pending, error::Problem, extract, extract::Json};

/// So many a user may have.
const MOST: i64 = 1_000;
/// Bytes of a text; with its escapes it has to fit into a body. What is larger is handed in in parts.
const MAX_CONTENT: usize = 200_000;
/// English has about four, and no writing has fewer than this, or the engine's count would be above ours.
const BYTES_PER_TOKEN: u64 = 3;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"title": "Terms", "content": "First paragraph.\n\nSecond paragraph."}))]
pub(super) struct NewDocument {
    /// What you call it: 1 to 200 characters.
    title: String,
    /// Its text: 1 to 200000 bytes of UTF-8.
    content: String,
}

/// Takes a document in and answers at once; a job ingests it, and its state tells how far that is. Costs what an embedding
/// of its text would cost.
#[utoipa::path(post, path = "/v1/documents", tag = "documents", security(("bearer" = []), ("api_key" = [])),
    request_body = NewDocument,
    responses((status = 202, body = DocumentView), (status = 403, body = Problem), (status = 409, body = Problem),
              (status = 422, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    pending: Pending,
    body: Result<Json<NewDocument>>,
) -> Result<impl IntoResponse> {
    let checked = body.and_then(|Json(new)| check(new));
    // A body that is refused costs a request all the same.
    let tokens = checked.as_ref().map_or(0, |new| (new.content.len() as u64).div_ceil(BYTES_PER_TOKEN));
    let policies = state.limiter.policies();
    let (caller, _) = pending
        .admit(|admission, caller| {
            admission.charge(caller.charge(&policies.user_jobs, 1));
            if tokens > 0 {
                admission.charge(caller.charge(&policies.ai_tokens, tokens));
                admission.charge(caller.charge(&policies.ai_tokens_daily, tokens));
            }
        })
        .await?;
    caller.require_scope(SCOPE)?;
    let NewDocument { title, content } = checked?;
    let (id, owner) = (Uuid::now_v7(), caller.user_id);
    let document = state
        .database
        .transaction("documents.insert", async |c| {
            let stored = db::documents::insert(c, id, owner, &title, &content, MOST).await?;
            let mut document = stored.ok_or_else(|| {
                Error::conflict(
                    "too_many_documents",
                    format!("At most {MOST} documents are kept: delete one first."),
                )
            })?;
            let options = EnqueueOptions { owner: Some(owner), ..Default::default() };
            let job = jobs::enqueue(c, &IngestDocument { document_id: id }, options).await?.id();
            db::documents::set_job(c, id, job).await?;
            document.job_id = Some(job);
            Ok::<_, Error>(document)
        })
        .await?;
    let location = HeaderValue::try_from(format!("/v1/documents/{id}")).map_err(Error::internal)?;
    let headers = HeaderMap::from_iter([(header::LOCATION, location)]);
    Ok((StatusCode::ACCEPTED, headers, Json(DocumentView::from(document))))
}

fn check(new: NewDocument) -> Result<NewDocument> {
    let title = extract::text("title", &new.title, 1, 200)?;
    if new.content.contains('\0') {
        return Err(Error::invalid("content", "must not contain NUL"));
    }
    if new.content.len() > MAX_CONTENT {
        return Err(Error::invalid("content", format!("must have at most {MAX_CONTENT} bytes")));
    }
    if new.content.trim().is_empty() {
        return Err(Error::invalid("content", "must have text in it"));
    }
    Ok(NewDocument { title, ..new })
}
