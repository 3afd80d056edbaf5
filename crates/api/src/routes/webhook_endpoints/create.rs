//! `POST /v1/webhook-endpoints`.

use axum::{extract::State, http::StatusCode};
use db::webhook_endpoints::NewEndpoint;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use webhooks::{EVENT_TYPES, Rules, standard};

use super::EndpointView;
use crate::{AppState, Error, Result, admission::Caller, error::Problem, extract::Json};

/// So many a user may register.
const MOST: i64 = 20;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"url": "https://example.com/hooks", "event_types": []}))]
pub(super) struct NewWebhookEndpoint {
    /// Where to post: `https`, a public address, port 443 or one from 1024 on.
    url: String,
    /// Which types of events; empty, or left out, means all.
    #[serde(default)]
    event_types: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CreatedWebhookEndpoint {
    /// Verify deliveries with it (Standard Webhooks). This is the only time it is shown.
    secret: String,
    #[serde(flatten)]
    view: EndpointView,
}

/// Registers an address that your events are posted to, signed by the specification of Standard Webhooks.
#[utoipa::path(post, path = "/v1/webhook-endpoints", tag = "webhooks", security(("bearer" = [])),
    request_body = NewWebhookEndpoint,
    responses((status = 201, body = CreatedWebhookEndpoint), (status = 403, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Json(body): Json<NewWebhookEndpoint>,
) -> Result<(StatusCode, Json<CreatedWebhookEndpoint>)> {
    let session_id = caller.require_live_session(&state).await?;
    let rules = Rules::of(state.config.runtime.environment);
    rules.check(&body.url).map_err(|refused| Error::invalid("url", refused.to_string()))?;
    check_types(&body.event_types)?;
    let id = Uuid::now_v7();
    let secret = standard::Secret::generate().map_err(Error::internal)?;
    let sealed = state.sealing.seal(id, caller.user_id, &secret).map_err(Error::internal)?;
    let new = NewEndpoint {
        id,
        user_id: caller.user_id,
        url: &body.url,
        event_types: &body.event_types,
        sealed: &sealed,
    };
    let event = db::audit::Event {
        event: "webhook_endpoint_created",
        user_id: Some(caller.user_id),
        session_id: Some(session_id),
        ip: Some(caller.client.0),
        request_id: Some(&caller.request_id),
        detail: serde_json::json!({ "id": id }),
    };
    let insert = async |c: &mut db::PgConnection| -> Result<_> {
        let Some(endpoint) = db::webhook_endpoints::insert(c, &new, MOST).await? else {
            let detail = format!("At most {MOST} endpoints can be registered: delete one first.");
            return Err(Error::conflict("too_many_webhook_endpoints", detail));
        };
        db::audit::insert(c, &event).await?;
        Ok(endpoint)
    };
    let endpoint = state.database.transaction("webhook_endpoints.insert", insert).await?;
    let created = CreatedWebhookEndpoint { secret: secret.expose_secret().to_owned(), view: endpoint.into() };
    Ok((StatusCode::CREATED, Json(created)))
}

fn check_types(wanted: &[String]) -> Result<()> {
    if wanted.iter().all(|wanted| EVENT_TYPES.contains(&wanted.as_str())) && wanted.len() <= EVENT_TYPES.len()
    {
        return Ok(());
    }
    let known = EVENT_TYPES.join(", ");
    Err(Error::invalid("event_types", format!("takes each type once; there are: {known}")))
}
