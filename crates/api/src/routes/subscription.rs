//! `GET /v1/subscription`.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{AppState, Result, admission::Caller, error::Problem, extract::Json};

#[derive(Serialize, ToSchema)]
pub(super) struct CurrentSubscription {
    /// None when there never was one.
    subscription: Option<SubscriptionView>,
}

/// What the payment provider told us last.
#[derive(Serialize, ToSchema)]
struct SubscriptionView {
    /// The provider's id.
    #[schema(example = "sub_1Abc")]
    id: String,
    /// The provider's word: `trialing`, `active`, `past_due`, `canceled` and others.
    status: String,
    /// It is paid for, or the provider still tries to get paid.
    active: bool,
    /// What is paid for.
    price_id: Option<String>,
    current_period_end: Option<DateTime<Utc>>,
    /// It ends with the period and is not renewed.
    cancel_at_period_end: bool,
    /// What became of the last invoice: `paid`, `open`, `payment_failed` and others.
    invoice_status: Option<String>,
}

/// Your subscription: of several, one that is active.
#[utoipa::path(get, path = "/v1/subscription", tag = "subscription", security(("bearer" = [])),
    responses((status = 200, body = CurrentSubscription), (status = 403, body = Problem)))]
pub(super) async fn subscription(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<CurrentSubscription>> {
    caller.require_session()?;
    let find = async |c: &mut db::PgConnection| db::subscriptions::of_user(c, caller.user_id).await;
    let found = state.database.call("subscriptions.of_user", find).await?;
    let subscription = found.map(|s| SubscriptionView {
        id: s.id,
        status: s.status,
        active: s.active,
        price_id: s.price_id,
        current_period_end: s.current_period_end,
        cancel_at_period_end: s.cancel_at_period_end,
        invoice_status: s.invoice_status,
    });
    Ok(Json(CurrentSubscription { subscription }))
}
