//! The `backfill` table: where each backfill is.

use serde_json::Value;
use sqlx::PgConnection;

use crate::Result;

/// Where a backfill is.
#[derive(Debug, Clone)]
pub struct Position {
    /// The last row that was done; none at the beginning.
    pub cursor: Option<Value>,
    /// Rows done in this pass.
    pub rows_done: i64,
    /// All rows are done.
    pub finished: bool,
}

/// Begins a backfill that never ran. With `again` it begins one anew, unless this job did so before: an attempt that goes on
/// after a crash must not begin at the beginning.
pub async fn begin(c: &mut PgConnection, name: &str, job_id: i64, again: bool) -> Result<()> {
    sqlx::query!(
        "insert into backfill as b (name, started_by) values ($1, $2)
         on conflict (name) do update set
             cursor = null, rows_done = 0, started_by = excluded.started_by, started_at = now(), updated_at = now(),
             finished_at = null
         where $3 and b.started_by <> excluded.started_by",
        name,
        job_id,
        again
    )
    .execute(c)
    .await?;
    Ok(())
}

/// Where it is; locked until the transaction ends, so that two workers take turns and do no batch twice.
pub async fn lock(c: &mut PgConnection, name: &str) -> Result<Position> {
    let position = sqlx::query_as!(
        Position,
        r#"select cursor, rows_done, finished_at is not null as "finished!" from backfill where name = $1 for update"#,
        name
    )
    .fetch_one(c)
    .await?;
    Ok(position)
}

/// Moves on, behind a batch of so many rows; without a cursor there was nothing left to do.
pub async fn advance(c: &mut PgConnection, name: &str, cursor: Option<&Value>, rows: i64) -> Result<()> {
    sqlx::query!(
        "update backfill set cursor = coalesce($2, cursor), rows_done = rows_done + $3, updated_at = now(),
                finished_at = case when $2::jsonb is null then now() end
         where name = $1",
        name,
        cursor,
        rows
    )
    .execute(c)
    .await?;
    Ok(())
}

/// About how many rows a table has, as of its last analysis; 0 when nobody knows.
pub async fn estimate_rows(c: &mut PgConnection, table: &str) -> Result<i64> {
    let rows = sqlx::query_scalar!(
        r#"select greatest(reltuples, 0)::bigint as "rows!" from pg_class where oid = to_regclass($1)"#,
        table
    )
    .fetch_optional(c)
    .await?;
    Ok(rows.unwrap_or(0))
}
