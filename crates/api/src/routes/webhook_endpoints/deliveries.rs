//! `GET /v1/webhook-endpoints/{id}/deliveries`.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Path},
};

const LATEST: i64 = 100;

/// What was sent, and what came of it.
#[derive(Serialize, ToSchema)]
pub(super) struct DeliveryView {
    /// Identifier; `webhook-id` is `msg_` and this without its hyphens.
    id: Uuid,
    event_type: String,
    /// `pending`, `delivered` or `failed`.
    state: &'static str,
    attempts: i32,
    /// What the last attempt was answered.
    last_status: Option<i32>,
    /// Why the last attempt was not answered.
    last_error: Option<String>,
    created_at: DateTime<Utc>,
    last_attempt_at: Option<DateTime<Utc>>,
    delivered_at: Option<DateTime<Utc>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Deliveries {
    data: Vec<DeliveryView>,
}

/// The latest hundred deliveries to an endpoint, newest first; they are kept for thirty days.
#[utoipa::path(get, path = "/v1/webhook-endpoints/{id}/deliveries", tag = "webhooks", security(("bearer" = [])),
    params(("id" = Uuid, Path)), responses((status = 200, body = Deliveries), (status = 403, body = Problem)))]
pub(super) async fn deliveries(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<Deliveries>> {
    caller.require_session()?;
    let latest = async |c: &mut db::PgConnection| -> Result<_> {
        if !db::webhook_endpoints::exists(c, caller.user_id, id).await? {
            return Err(Error::not_found());
        }
        Ok(db::webhook_deliveries::latest(c, id, LATEST).await?)
    };
    let data = state.database.call("webhook_deliveries.latest", latest).await?;
    Ok(Json(Deliveries { data: data.into_iter().map(DeliveryView::from).collect() }))
}

impl From<db::webhook_deliveries::Delivery> for DeliveryView {
    fn from(delivery: db::webhook_deliveries::Delivery) -> Self {
        let state = match (delivery.delivered_at, delivery.failed_at) {
            (Some(_), _) => "delivered",
            (None, Some(_)) => "failed",
            (None, None) => "pending",
        };
        Self {
            id: delivery.id,
            event_type: delivery.event_type,
            state,
            attempts: delivery.attempts,
            last_status: delivery.last_status,
            last_error: delivery.last_error,
            created_at: delivery.created_at,
            last_attempt_at: delivery.last_attempt_at,
            delivered_at: delivery.delivered_at,
        }
    }
}
