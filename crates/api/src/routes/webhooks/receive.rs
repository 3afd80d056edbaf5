//! `POST /v1/webhooks/{source}`.
//!
//! Who may send is known by the signature over the raw body; without a configured secret a source does not exist. A genuine
//! event is stored under its sender's id together with the job that acts on it, in one transaction, and only then answered.

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use job_specs::ProcessWebhook;
use jobs::EnqueueOptions;
use serde::Serialize;
use utoipa::ToSchema;
use webhooks::VerifyError;

use crate::{
    AppState, Error, Result,
    admission::Anonymous,
    body,
    error::Problem,
    extract::{Json, Path},
};

#[derive(Serialize, ToSchema)]
pub(super) struct Received {
    /// The sender's id of the event.
    id: String,
    /// It was here before; nothing is done a second time.
    duplicate: bool,
}

/// Takes an event from a system that signs what it sends: Stripe, or any sender of Standard Webhooks.
///
/// An event that is sent again is answered 200 and not acted upon again.
#[utoipa::path(post, path = "/v1/webhooks/{source}", tag = "webhooks",
    params(("source" = String, Path, description = "`stripe`, or a name from WEBHOOK_SECRETS"),
           ("webhook-id" = Option<String>, Header, description = "Standard Webhooks: the event's id"),
           ("webhook-timestamp" = Option<String>, Header, description = "Standard Webhooks: when it was sent, in Unix seconds"),
           ("webhook-signature" = Option<String>, Header, description = "Standard Webhooks: `v1,BASE64`, blank-separated"),
           ("Stripe-Signature" = Option<String>, Header, description = "Stripe: `t=TIME,v1=HEX`")),
    request_body(content = serde_json::Value, content_type = "application/json",
                 example = json!({"type": "invoice.paid", "timestamp": "2026-11-20T08:00:00Z", "data": {}})),
    responses((status = 200, body = Received), (status = 401, body = Problem, description = "The signature does not fit.")))]
pub(super) async fn receive(
    State(state): State<AppState>,
    anonymous: Anonymous,
    Path(source): Path<String>,
    headers: HeaderMap,
    content: Bytes,
) -> Result<Json<Received>> {
    body::refuse_compressed(&headers)?;
    let verified = match state.webhook_senders.get(&source) {
        Some(sender) => sender.verify(&headers, &content, state.clock.now()).map_err(refuse),
        None => Err(Error::not_found()),
    };
    let id = match verified {
        Ok(id) => id,
        Err(refusal) => {
            // A genuine sender is not limited: its events come in bursts from few addresses. Everybody else is.
            anonymous.admit_globally().await?;
            return Err(refusal);
        }
    };
    let new = state
        .database
        .transaction("webhook_events.insert", async |c| {
            let new = db::webhook_events::insert(c, &source, &id, &content).await?;
            if new {
                let job = ProcessWebhook { source: source.clone(), event_id: id.clone() };
                jobs::enqueue(c, &job, EnqueueOptions::default()).await?;
            }
            Ok::<_, Error>(new)
        })
        .await?;
    let outcome = if new { "new" } else { "duplicate" };
    metrics::counter!("webhooks_received_total", "source" => source, "outcome" => outcome).increment(1);
    Ok(Json(Received { id, duplicate: !new }))
}

fn refuse(error: VerifyError) -> Error {
    metrics::counter!("webhooks_refused_total").increment(1);
    let detail = format!("This is not taken for the sender's: {error}.");
    match error {
        VerifyError::Missing(_) | VerifyError::Malformed(_) => Error::bad_request("invalid_webhook", detail),
        // RFC 9110, section 15.5.2, wants a challenge; what is missing here is a good signature.
        VerifyError::Stale | VerifyError::Mismatch => {
            Error::new(StatusCode::UNAUTHORIZED, "invalid_signature", detail)
                .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Signature"))
        }
    }
}
