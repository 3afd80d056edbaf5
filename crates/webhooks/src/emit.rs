//! Telling users: an event becomes a delivery for each endpoint that wants it, and a job for each delivery.

use chrono::{DateTime, SecondsFormat, Utc};
use db::{PgConnection, webhook_deliveries};
use job_specs::DeliverWebhook;
use jobs::EnqueueOptions;
use serde::Serialize;
use uuid::Uuid;

/// The event by which an endpoint is tried out. Goes to every endpoint, whatever it asked for.
const PING: &str = "ping";
/// Types of events that endpoints can ask for.
pub const EVENT_TYPES: [&str; 1] = [PING];

/// An event cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    /// The database.
    #[error(transparent)]
    Database(#[from] db::Error),
    /// The queue.
    #[error(transparent)]
    Queue(#[from] jobs::Error),
    /// The data is no JSON.
    #[error("the event's data cannot be serialised")]
    Data(#[from] serde_json::Error),
}

/// The body of a webhook, as Standard Webhooks recommends it.
#[derive(Serialize)]
struct Message<'a, T> {
    r#type: &'a str,
    timestamp: String,
    data: &'a T,
}

/// Tells a user's endpoints that something happened, when the caller's transaction commits. Returns how many are told.
pub async fn emit(
    c: &mut PgConnection,
    user_id: Uuid,
    event_type: &'static str,
    at: DateTime<Utc>,
    data: &impl Serialize,
) -> Result<usize, EmitError> {
    debug_assert!(EVENT_TYPES.contains(&event_type), "{event_type}");
    let deliveries = webhook_deliveries::insert(c, user_id, event_type, &body(event_type, at, data)?).await?;
    for delivery_id in &deliveries {
        enqueue(c, user_id, *delivery_id).await?;
    }
    Ok(deliveries.len())
}

/// Sends a `ping` event to one endpoint of the user; gives the delivery's id, or `None` when there is no such endpoint.
pub async fn ping(
    c: &mut PgConnection,
    user_id: Uuid,
    endpoint_id: Uuid,
    at: DateTime<Utc>,
) -> Result<Option<Uuid>, EmitError> {
    let body = body(PING, at, &serde_json::json!({ "endpoint_id": endpoint_id }))?;
    let delivery = webhook_deliveries::insert_for(c, user_id, endpoint_id, PING, &body).await?;
    if let Some(delivery_id) = delivery {
        enqueue(c, user_id, delivery_id).await?;
    }
    Ok(delivery)
}

async fn enqueue(c: &mut PgConnection, user_id: Uuid, delivery_id: Uuid) -> Result<(), EmitError> {
    let options = EnqueueOptions { owner: Some(user_id), ..EnqueueOptions::default() };
    jobs::enqueue(c, &DeliverWebhook { delivery_id }, options).await?;
    Ok(())
}

fn body(event_type: &str, at: DateTime<Utc>, data: &impl Serialize) -> Result<String, serde_json::Error> {
    let timestamp = at.to_rfc3339_opts(SecondsFormat::Millis, true);
    serde_json::to_string(&Message { r#type: event_type, timestamp, data })
}
