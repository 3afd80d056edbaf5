//! `GET /v1/webhook-endpoints`.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::EndpointView;
use crate::{AppState, Result, admission::Caller, error::Problem, extract::Json};

#[derive(Serialize, ToSchema)]
pub(super) struct WebhookEndpoints {
    data: Vec<EndpointView>,
}

/// Your endpoints, newest first.
#[utoipa::path(get, path = "/v1/webhook-endpoints", tag = "webhooks", security(("bearer" = [])),
    responses((status = 200, body = WebhookEndpoints), (status = 403, body = Problem)))]
pub(super) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<WebhookEndpoints>> {
    caller.require_session()?;
    let list = async |c: &mut db::PgConnection| db::webhook_endpoints::list(c, caller.user_id).await;
    let endpoints = state.database.call("webhook_endpoints.list", list).await?;
    Ok(Json(WebhookEndpoints { data: endpoints.into_iter().map(EndpointView::from).collect() }))
}
