//! What Stripe's events say about subscriptions: `customer.subscription.*` and `invoice.*`.
//!
//! Stripe delivers an event more than once and in any order. Once is the business of `process_webhook`; the order is that of
//! the event's own time, and within one second that of [`rank`] and [`invoice_rank`]: see `docs/decisions/0065-subscriptions.md`.

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use db::{
    PgConnection,
    subscriptions::{self, Heard, HeardInvoice},
};
use jobs::JobError;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

/// An event: <https://docs.stripe.com/api/events/object>.
#[derive(Deserialize)]
struct Event {
    r#type: String,
    created: i64,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    object: Value,
}

/// <https://docs.stripe.com/api/subscriptions/object>. From version 2025-03-31 of the API on the period stands in the items.
#[derive(Deserialize)]
struct Subscription {
    id: String,
    customer: String,
    status: String,
    #[serde(default)]
    cancel_at_period_end: bool,
    current_period_end: Option<i64>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    items: Items,
}

#[derive(Deserialize, Default)]
struct Metadata {
    user_id: Option<String>,
}

#[derive(Deserialize, Default)]
struct Items {
    #[serde(default)]
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    current_period_end: Option<i64>,
    price: Option<Price>,
}

#[derive(Deserialize)]
struct Price {
    id: String,
}

/// <https://docs.stripe.com/api/invoices/object>. From version 2025-03-31 on the subscription stands in `parent`.
#[derive(Deserialize)]
struct Invoice {
    customer: Option<String>,
    status: Option<String>,
    subscription: Option<String>,
    parent: Option<Parent>,
}

#[derive(Deserialize)]
struct Parent {
    subscription_details: Option<SubscriptionDetails>,
}

#[derive(Deserialize)]
struct SubscriptionDetails {
    subscription: Option<String>,
}

/// Takes over what the event says; the answer tells what was done. What is no such event is nobody's business here.
pub(crate) async fn hear(c: &mut PgConnection, body: &[u8]) -> Result<&'static str, JobError> {
    // What does not fit will not fit the next time.
    let event: Event = serde_json::from_slice(body).map_err(JobError::discard)?;
    let at = time(event.created)?;
    let heard = if event.r#type.starts_with("customer.subscription.") {
        let subscription: Subscription =
            serde_json::from_value(event.data.object).map_err(JobError::discard)?;
        hear_subscription(c, &subscription, &event.r#type, at).await?
    } else if event.r#type.starts_with("invoice.") {
        let invoice: Invoice = serde_json::from_value(event.data.object).map_err(JobError::discard)?;
        match hear_invoice(c, &invoice, &event.r#type, at).await? {
            Some(heard) => heard,
            None => return Ok("none: not an invoice of a subscription"),
        }
    } else {
        return Ok("none");
    };
    Ok(if heard { "noted" } else { "none: something later was heard before" })
}

async fn hear_subscription(
    c: &mut PgConnection,
    subscription: &Subscription,
    event: &str,
    event_at: DateTime<Utc>,
) -> Result<bool, JobError> {
    let items = &subscription.items.data;
    let in_items = items.iter().filter_map(|item| item.current_period_end).min();
    let period_end = subscription.current_period_end.or(in_items).map(time).transpose()?;
    let price = items.iter().find_map(|item| item.price.as_ref());
    let heard = Heard {
        id: word(&subscription.id)?,
        customer_id: word(&subscription.customer)?,
        user_id: subscription.metadata.user_id.as_deref().and_then(|id| Uuid::parse_str(id).ok()),
        status: word(&subscription.status)?,
        price_id: price.map(|price| word(&price.id)).transpose()?,
        current_period_end: period_end,
        cancel_at_period_end: subscription.cancel_at_period_end,
        event_at,
        event_rank: rank(event),
    };
    Ok(subscriptions::hear(c, &heard).await?)
}

/// `None` when it is no invoice of a subscription, or only announced.
async fn hear_invoice(
    c: &mut PgConnection,
    invoice: &Invoice,
    event: &str,
    event_at: DateTime<Utc>,
) -> Result<Option<bool>, JobError> {
    let details = invoice.parent.as_ref().and_then(|parent| parent.subscription_details.as_ref());
    let subscription = invoice.subscription.as_ref().or(details.and_then(|d| d.subscription.as_ref()));
    let (Some(subscription), Some(customer), Some(status)) =
        (subscription, &invoice.customer, &invoice.status)
    else {
        return Ok(None);
    };
    // The invoice stays `open` when a payment fails; that it failed is what matters.
    let status = if event == "invoice.payment_failed" { "payment_failed" } else { word(status)? };
    let heard = HeardInvoice {
        subscription_id: word(subscription)?,
        customer_id: word(customer)?,
        status,
        event_at,
        event_rank: invoice_rank(status),
    };
    Ok(Some(subscriptions::hear_invoice(c, &heard).await?))
}

/// Of events of one second: nothing comes before `created`, and nothing after `deleted`.
fn rank(event: &str) -> i16 {
    match event {
        "customer.subscription.created" => 0,
        "customer.subscription.deleted" => 2,
        _ => 1,
    }
}

/// Of events of one second: the way of an invoice.
fn invoice_rank(status: &str) -> i16 {
    match status {
        "draft" => 0,
        "open" => 1,
        "payment_failed" => 2,
        _ => 3,
    }
}

fn time(seconds: i64) -> Result<DateTime<Utc>, JobError> {
    // Beyond the year 9999 Postgres and JavaScript begin to disagree.
    let fine = DateTime::from_timestamp(seconds, 0).filter(|_| (0..253_402_300_800).contains(&seconds));
    fine.ok_or_else(|| JobError::Discard(anyhow!("{seconds} is no time")))
}

/// An id or a status as the database takes it.
fn word(text: &str) -> Result<&str, JobError> {
    let fine = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(text) } else { Err(JobError::Discard(anyhow!("an id or a status is not as it should be"))) }
}
