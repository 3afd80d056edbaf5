//! `keep_partitions`: the coming days' partitions of finished jobs, and an end to the old ones.
//!
//! It is part of the core: without it finished jobs stay for ever.

use job_specs::KeepPartitions;
use jobs::{JobContext, JobError, Kept};

use crate::Context;

/// Safe to run at any time and at the same time as another one.
pub async fn run(context: Context, _: JobContext, _: KeepPartitions) -> Result<Kept, JobError> {
    let retention = context.config.queue.retention;
    let keep = async |c: &mut db::PgConnection| Ok::<_, JobError>(jobs::keep_partitions(c, retention).await?);
    let kept = context.database.call("jobs.keep_partitions", keep).await?;
    tracing::info!(created = kept.created.len(), dropped = kept.dropped.len(), "partitions of finished jobs");
    Ok(kept)
}
