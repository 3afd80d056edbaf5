//! `ingest_document`: splits a document, has the engine turn each piece into numbers, and stores both.
//!
//! To delete it: see "Documents" in `docs/removing-parts.md`.

use std::{collections::HashSet, time::Duration};

use anyhow::anyhow;
use db::{documents, usage::UsageEvent};
use job_specs::IngestDocument;
use jobs::{JobContext, JobError};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    Context,
    embeddings::{self, Embedded, NotEmbedded},
    split::split,
};

/// Jobs of this kind at a time in a process: the engine has other things to do too.
pub(crate) const AT_A_TIME: usize = 3;
/// Bytes of a piece: about 400 tokens of English, which every embedding model takes.
const PIECE: usize = 1_500;
/// Pieces in one request to the engine, and in one transaction.
const BATCH: usize = 32;

/// What the job reports.
#[derive(Debug, Serialize)]
struct Ingested {
    chunks: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// What was stored stays stored: the next attempt asks for the pieces that are missing. The pieces, what they cost, and in the
/// end the document's state and the job's completion are in one transaction each.
pub async fn run(context: Context, attempt: JobContext, job: IngestDocument) -> Result<(), JobError> {
    let (database, id) = (&context.database, job.document_id);
    let find = async |c: &mut db::PgConnection| documents::content(c, id).await;
    let Some(document) = database.call("documents.content", find).await?.filter(|d| !d.ready) else {
        return end(&context, &attempt, "none: it was ingested before, or deleted").await;
    };
    let pieces = split(&document.content, PIECE);
    let count = i32::try_from(pieces.len()).map_err(JobError::discard)?;
    let model = &context.config.embedding_model;
    let begin = async |c: &mut db::PgConnection| {
        documents::begin(c, id, count).await?;
        documents::stored_chunks(c, id, model).await
    };
    let stored: HashSet<(i32, String)> =
        database.transaction("documents.begin", begin).await?.into_iter().collect();
    let missing: Vec<(i32, &str)> = (0..)
        .zip(pieces.iter().copied())
        .filter(|(n, piece)| !stored.contains(&(*n, (*piece).to_owned())))
        .collect();
    let mut done = pieces.len() - missing.len();
    for batch in missing.chunks(BATCH) {
        attempt.progress(done as u64, pieces.len() as u64, None).await;
        if attempt.cancelled().is_cancelled() {
            return Err(anyhow!("stopped after {done} pieces").into());
        }
        let texts: Vec<&str> = batch.iter().map(|(_, piece)| *piece).collect();
        let embedded = match embeddings::embed(&context.engines, model, &texts, attempt.id()).await {
            Ok(embedded) => embedded,
            Err(error) => return Err(not_embedded(&context, &attempt, id, error).await?),
        };
        if !store(&context, &attempt, id, document.user_id, batch, &embedded).await? {
            return end(&context, &attempt, "none: it was deleted").await;
        }
        done += batch.len();
    }
    let finish = async |c: &mut db::PgConnection| -> Result<(), JobError> {
        documents::finish(c, id, count).await?;
        Ok(attempt.complete_in(c, &Ingested { chunks: pieces.len(), note: None }).await?)
    };
    database.transaction("documents.finish", finish).await
}

/// False when the document is gone.
async fn store(
    context: &Context,
    attempt: &JobContext,
    id: Uuid,
    user_id: Uuid,
    batch: &[(i32, &str)],
    embedded: &Embedded,
) -> Result<bool, JobError> {
    let model = &context.config.embedding_model;
    let used = UsageEvent {
        id: Uuid::now_v7(),
        occurred_at: runtime::Clock::system().now(),
        user_id,
        api_key_id: None,
        request_id: embeddings::request_id(attempt.id()),
        route: "ingest_document".to_owned(),
        model: model.clone(),
        engine: embedded.engine.clone(),
        prompt_tokens: embedded.tokens,
        completion_tokens: 0,
        estimated: embedded.estimated,
        cached: false,
        outcome: "ok",
        first_token_ms: None,
        duration_ms: embedded.duration_ms,
    };
    let store = async |c: &mut db::PgConnection| -> Result<bool, JobError> {
        if !documents::hold(c, id).await? {
            return Ok(false);
        }
        for ((position, piece), numbers) in batch.iter().zip(&embedded.vectors) {
            documents::store_chunk(c, id, *position, piece, model, numbers).await?;
        }
        db::usage::insert(c, std::slice::from_ref(&used)).await?;
        Ok(true)
    };
    context.database.transaction("documents.store", store).await
}

/// What the queue is to do; and when it is the end, its owner is told why.
async fn not_embedded(
    context: &Context,
    attempt: &JobContext,
    id: Uuid,
    error: NotEmbedded,
) -> Result<JobError, JobError> {
    let (for_owner, error) = match error {
        NotEmbedded::Refused(text) => {
            (text.clone(), JobError::Discard(anyhow!("the engine refuses it: {text}")))
        }
        NotEmbedded::Unavailable(text, wait) => {
            let error = anyhow!("the engine is not available: {text}");
            let error = match wait {
                // An engine that says "one second" for an hour must not use all attempts up.
                Some(wait) => JobError::RetryIn(
                    wait.max(Duration::from_secs(1 << attempt.attempt().clamp(0, 11))),
                    error,
                ),
                None => JobError::Retry(error),
            };
            ("the engine was not available".to_owned(), error)
        }
    };
    if attempt.is_last_attempt() || matches!(error, JobError::Discard(_)) {
        let fail = async |c: &mut db::PgConnection| documents::fail(c, id, &for_owner).await;
        context.database.call("documents.fail", fail).await?;
    }
    Ok(error)
}

async fn end(context: &Context, attempt: &JobContext, note: &'static str) -> Result<(), JobError> {
    let complete = async |c: &mut db::PgConnection| -> Result<(), JobError> {
        Ok(attempt.complete_in(c, &Ingested { chunks: 0, note: Some(note) }).await?)
    };
    context.database.transaction("jobs.complete", complete).await
}
