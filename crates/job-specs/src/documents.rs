//! Documents.

use std::time::Duration;

use jobs::JobSpec;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Splits a document and stores its pieces with their embeddings. Enqueued with the document's owner as its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestDocument {
    /// Which one.
    pub document_id: Uuid,
}

impl JobSpec for IngestDocument {
    const NAME: &'static str = "ingest_document";
    // Of its own, with a number of slots of its own.
    const QUEUE: &'static str = "documents";
    // With backoff up to an hour, about three hours: longer than an engine's usual outage.
    const MAX_ATTEMPTS: i16 = 14;
    const TIMEOUT: Duration = Duration::from_secs(900);
}
