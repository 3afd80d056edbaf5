//! The tables `document` and `document_chunk`.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// A document, without its content.
#[derive(Debug, Clone)]
pub struct Document {
    /// Identifier (UUID version 7).
    pub id: Uuid,
    /// What its owner calls it.
    pub title: String,
    /// `pending`, `ready` or `failed`. A pending one without a live job has failed.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// How many pieces it has; none before the first attempt.
    pub chunk_count: Option<i32>,
    /// How many of them are stored.
    pub chunks_stored: i64,
    /// The job that ingests it.
    pub job_id: Option<i64>,
    /// When it was handed in.
    pub created_at: DateTime<Utc>,
    /// When its last piece was stored.
    pub ingested_at: Option<DateTime<Utc>>,
}

/// Stores a document; `None` when the user has `most` already.
pub async fn insert(
    c: &mut PgConnection,
    id: Uuid,
    user_id: Uuid,
    title: &str,
    content: &str,
    most: i64,
) -> Result<Option<Document>> {
    // One after the other, or two at once would both be the last one.
    sqlx::query!("select id from users where id = $1 for no key update", user_id)
        .fetch_optional(&mut *c)
        .await?;
    let stored = sqlx::query_as!(
        Document,
        r#"insert into document (id, user_id, title, content)
           select $1, $2, $3, $4 where (select count(*) from document where user_id = $2) < $5
           returning id, title, state, error, chunk_count, 0::bigint as "chunks_stored!", job_id, created_at,
                     ingested_at"#,
        id,
        user_id,
        title,
        content,
        most,
    )
    .fetch_optional(c)
    .await?;
    Ok(stored)
}

/// Notes which job ingests it.
pub async fn set_job(c: &mut PgConnection, id: Uuid, job_id: i64) -> Result<()> {
    sqlx::query!("update document set job_id = $2 where id = $1", id, job_id).execute(c).await?;
    Ok(())
}

/// Documents of a user, newest first, older than the one with the id `before`.
pub async fn list(
    c: &mut PgConnection,
    user_id: Uuid,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Document>> {
    let documents = sqlx::query_as!(
        Document,
        r#"select id, title, chunk_count, job_id, created_at, ingested_at,
                  case when given_up then 'failed' else state end as "state!",
                  case when given_up then 'its job was cancelled or given up' else error end as error,
                  (select count(*) from document_chunk where document_id = document.id) as "chunks_stored!"
           from document,
                lateral (select state = 'pending' and not exists (select from job where job.id = job_id) as given_up) as job
           where user_id = $1 and ($2::uuid is null or id < $2) order by id desc limit $3"#,
        user_id,
        before,
        limit
    )
    .fetch_all(c)
    .await?;
    Ok(documents)
}

/// One document of a user.
pub async fn find(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<Option<Document>> {
    let document = sqlx::query_as!(
        Document,
        r#"select id, title, chunk_count, job_id, created_at, ingested_at,
                  case when given_up then 'failed' else state end as "state!",
                  case when given_up then 'its job was cancelled or given up' else error end as error,
                  (select count(*) from document_chunk where document_id = document.id) as "chunks_stored!"
           from document,
                lateral (select state = 'pending' and not exists (select from job where job.id = job_id) as given_up) as job
           where user_id = $1 and id = $2"#,
        user_id,
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(document)
}

/// Deletes a document and its pieces. Tells its job, if it had one; the outer `None` means that there is no such document.
pub async fn delete(c: &mut PgConnection, user_id: Uuid, id: Uuid) -> Result<Option<Option<i64>>> {
    let gone = sqlx::query_scalar!(
        "delete from document where user_id = $1 and id = $2 returning job_id",
        user_id,
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(gone)
}

/// What is to be ingested.
#[derive(Debug, Clone)]
pub struct Content {
    /// Whose it is.
    pub user_id: Uuid,
    /// The text.
    pub content: String,
    /// It was ingested before.
    pub ready: bool,
}

/// The content of a document.
pub async fn content(c: &mut PgConnection, id: Uuid) -> Result<Option<Content>> {
    let content = sqlx::query_as!(
        Content,
        r#"select user_id, content, state = 'ready' as "ready!" from document where id = $1"#,
        id
    )
    .fetch_optional(c)
    .await?;
    Ok(content)
}

/// Notes how many pieces there will be, and that an attempt has begun.
pub async fn begin(c: &mut PgConnection, id: Uuid, chunk_count: i32) -> Result<()> {
    sqlx::query!(
        "update document set state = 'pending', error = null, chunk_count = $2 where id = $1",
        id,
        chunk_count
    )
    .execute(c)
    .await?;
    Ok(())
}

/// The pieces that are stored already, with numbers of this model.
pub async fn stored_chunks(c: &mut PgConnection, id: Uuid, model: &str) -> Result<Vec<(i32, String)>> {
    let rows = sqlx::query!(
        "select position, content from document_chunk where document_id = $1 and model = $2 order by position",
        id,
        model
    )
    .fetch_all(c)
    .await?;
    Ok(rows.into_iter().map(|row| (row.position, row.content)).collect())
}

/// Holds the document until the transaction ends, so that it cannot be deleted meanwhile; false when it is gone.
pub async fn hold(c: &mut PgConnection, id: Uuid) -> Result<bool> {
    let held = sqlx::query_scalar!("select id from document where id = $1 for key share", id)
        .fetch_optional(c)
        .await?;
    Ok(held.is_some())
}

/// Stores a piece, in place of what was there.
pub async fn store_chunk(
    c: &mut PgConnection,
    id: Uuid,
    position: i32,
    content: &str,
    model: &str,
    embedding: &[f32],
) -> Result<()> {
    sqlx::query!(
        "insert into document_chunk (document_id, position, content, model, embedding) values ($1, $2, $3, $4, $5)
         on conflict (document_id, position) do update set
             content = excluded.content, model = excluded.model, embedding = excluded.embedding",
        id,
        position,
        content,
        model,
        embedding
    )
    .execute(c)
    .await?;
    Ok(())
}

/// All pieces are there; what an earlier way of splitting left behind goes.
pub async fn finish(c: &mut PgConnection, id: Uuid, chunk_count: i32) -> Result<()> {
    sqlx::query!("delete from document_chunk where document_id = $1 and position >= $2", id, chunk_count)
        .execute(&mut *c)
        .await?;
    sqlx::query!(
        "update document set state = 'ready', error = null, chunk_count = $2, ingested_at = now() where id = $1",
        id,
        chunk_count
    )
    .execute(c)
    .await?;
    Ok(())
}

/// It was given up, for this reason.
pub async fn fail(c: &mut PgConnection, id: Uuid, error: &str) -> Result<()> {
    sqlx::query!("update document set state = 'failed', error = $2 where id = $1", id, error)
        .execute(c)
        .await?;
    Ok(())
}
