//! The `subscription` table: what the payment provider's events told.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Result;

/// The state of a subscription at the time of an event.
#[derive(Debug, Clone)]
pub struct Heard<'a> {
    /// The provider's id.
    pub id: &'a str,
    /// The provider's id of who pays.
    pub customer_id: &'a str,
    /// Whose it is, if the event says so; nobody of ours is the same as nobody.
    pub user_id: Option<Uuid>,
    /// The provider's word.
    pub status: &'a str,
    /// What is paid for.
    pub price_id: Option<&'a str>,
    /// Until when it is paid for.
    pub current_period_end: Option<DateTime<Utc>>,
    /// It ends then.
    pub cancel_at_period_end: bool,
    /// When the event happened.
    pub event_at: DateTime<Utc>,
    /// What goes last among events of one second.
    pub event_rank: i16,
}

/// Takes over what an event says, unless a later event was here before it; false then. Of two events of one second and rank
/// the one that comes last counts.
pub async fn hear(c: &mut PgConnection, heard: &Heard<'_>) -> Result<bool> {
    let done = sqlx::query!(
        "insert into subscription as s (id, customer_id, user_id, status, price_id, current_period_end,
                                        cancel_at_period_end, event_at, event_rank)
         values ($1, $2, (select id from users where id = $3), $4, $5, $6, $7, $8, $9)
         on conflict (id) do update set
             customer_id = excluded.customer_id, user_id = coalesce(excluded.user_id, s.user_id),
             status = excluded.status, price_id = excluded.price_id,
             current_period_end = excluded.current_period_end,
             cancel_at_period_end = excluded.cancel_at_period_end,
             event_at = excluded.event_at, event_rank = excluded.event_rank, updated_at = now()
         where s.event_at is null or (s.event_at, s.event_rank) <= (excluded.event_at, excluded.event_rank)",
        heard.id,
        heard.customer_id,
        heard.user_id,
        heard.status,
        heard.price_id,
        heard.current_period_end,
        heard.cancel_at_period_end,
        heard.event_at,
        heard.event_rank,
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What became of an invoice of a subscription.
#[derive(Debug, Clone)]
pub struct HeardInvoice<'a> {
    /// The subscription's id.
    pub subscription_id: &'a str,
    /// The provider's id of who pays.
    pub customer_id: &'a str,
    /// The provider's word, or `payment_failed`.
    pub status: &'a str,
    /// When the event happened.
    pub event_at: DateTime<Utc>,
    /// What goes last among events of one second.
    pub event_rank: i16,
}

/// Notes what became of an invoice, unless something later was heard of one; false then. The subscription itself may not
/// have been heard of yet.
pub async fn hear_invoice(c: &mut PgConnection, heard: &HeardInvoice<'_>) -> Result<bool> {
    let done = sqlx::query!(
        "insert into subscription as s (id, customer_id, invoice_status, invoice_event_at, invoice_event_rank)
         values ($1, $2, $3, $4, $5)
         on conflict (id) do update set
             invoice_status = excluded.invoice_status, invoice_event_at = excluded.invoice_event_at,
             invoice_event_rank = excluded.invoice_event_rank, updated_at = now()
         where s.invoice_event_at is null
            or (s.invoice_event_at, s.invoice_event_rank) <= (excluded.invoice_event_at, excluded.invoice_event_rank)",
        heard.subscription_id,
        heard.customer_id,
        heard.status,
        heard.event_at,
        heard.event_rank,
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A subscription as its user sees it.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The provider's id.
    pub id: String,
    /// The provider's word.
    pub status: String,
    /// It is paid for, or the provider still tries to get paid.
    pub active: bool,
    /// What is paid for.
    pub price_id: Option<String>,
    /// Until when it is paid for.
    pub current_period_end: Option<DateTime<Utc>>,
    /// It ends then.
    pub cancel_at_period_end: bool,
    /// What became of the last invoice.
    pub invoice_status: Option<String>,
}

/// The subscription of a user; of several, one that is active, and of those the one that lasts longest.
pub async fn of_user(c: &mut PgConnection, user_id: Uuid) -> Result<Option<Subscription>> {
    let found = sqlx::query_as!(
        Subscription,
        r#"select id, status as "status!", price_id, current_period_end, cancel_at_period_end, invoice_status,
                  (status in ('active', 'trialing', 'past_due')
                   and (lapsed_period_end = current_period_end) is not true) as "active!"
           from subscription where user_id = $1 and status is not null
           order by 7 desc, current_period_end desc nulls last, id limit 1"#,
        user_id
    )
    .fetch_optional(c)
    .await?;
    Ok(found)
}

/// A period that ends soon, and who is to be told.
#[derive(Debug)]
pub struct Ending {
    /// To whom.
    pub email: String,
    /// When it ends.
    pub period_end: DateTime<Utc>,
}

/// Periods that end within so many days and are renewed then, each once: they are marked in this transaction. Of users who
/// may log in.
pub async fn take_ending(c: &mut PgConnection, days: i32, limit: i64) -> Result<Vec<Ending>> {
    let ending = sqlx::query_as!(
        Ending,
        r#"with due as (
               select s.id, u.email from subscription s join users u on u.id = s.user_id and u.disabled_at is null
               where s.status in ('active', 'trialing') and not s.cancel_at_period_end
                 and s.current_period_end between now() and now() + make_interval(days => $1)
                 and s.reminded_period_end is distinct from s.current_period_end
               order by s.current_period_end limit $2
               for update of s skip locked
           )
           update subscription s set reminded_period_end = s.current_period_end
           from due where s.id = due.id
           returning due.email as "email!", s.current_period_end as "period_end!""#,
        days,
        limit
    )
    .fetch_all(c)
    .await?;
    Ok(ending)
}

/// Marks periods that ended so many days ago without a word of the provider, each once; returns how many. The next event
/// that tells of a new period makes the subscription active again.
pub async fn lapse(c: &mut PgConnection, days: i32) -> Result<u64> {
    let done = sqlx::query!(
        "update subscription set lapsed_period_end = current_period_end, updated_at = now()
         where status in ('active', 'trialing') and current_period_end < now() - make_interval(days => $1)
           and lapsed_period_end is distinct from current_period_end",
        days
    )
    .execute(c)
    .await?;
    Ok(done.rows_affected())
}
