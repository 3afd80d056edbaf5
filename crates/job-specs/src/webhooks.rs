//! Webhooks, in and out.

use std::time::Duration;

use jobs::JobSpec;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Acts on a webhook that came in and was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessWebhook {
    /// Who sent it.
    pub source: String,
    /// The sender's id of the event.
    pub event_id: String,
}

impl JobSpec for ProcessWebhook {
    const NAME: &'static str = "process_webhook";
    const QUEUE: &'static str = "webhooks";
    const MAX_ATTEMPTS: i16 = 16;
    const TIMEOUT: Duration = Duration::from_secs(60);
}

/// Sends one event to one endpoint that a user registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverWebhook {
    /// Which delivery.
    pub delivery_id: Uuid,
}

impl JobSpec for DeliverWebhook {
    const NAME: &'static str = "deliver_webhook";
    const QUEUE: &'static str = "webhooks";
    // One more than there are waits: about three days.
    const MAX_ATTEMPTS: i16 = 10;
    const TIMEOUT: Duration = Duration::from_secs(30);
}
