//! `check_renewals`: tells people a week ahead that their subscription will be renewed, and notes which renewal was never heard of.
//!
//! To delete it: see "Subscriptions" in `docs/removing-parts.md`.

use job_specs::{CheckRenewals, SendEmail};
use jobs::{EnqueueOptions, JobContext, JobError};
use serde::Serialize;

use crate::Context;

/// So many days before the end of a period its renewal is announced.
const AHEAD_DAYS: i32 = 7;
/// Stripe sends an event again for three days. Who was not heard of for so long after the end of a period has not paid, or our
/// webhooks do not work.
const SILENT_DAYS: i32 = 4;
/// Mails enqueued in one transaction.
const BATCH: i64 = 100;

/// What was done.
#[derive(Debug, Serialize)]
pub struct Checked {
    reminded: usize,
    lapsed: u64,
}

/// The mail's job and the mark that this period was announced are one transaction: one mail for each period, however often
/// this runs.
pub async fn run(context: Context, attempt: JobContext, _: CheckRenewals) -> Result<Checked, JobError> {
    let mut reminded = 0;
    loop {
        let remind = async |c: &mut db::PgConnection| -> Result<usize, JobError> {
            let ending = db::subscriptions::take_ending(c, AHEAD_DAYS, BATCH).await?;
            for period in &ending {
                jobs::enqueue(c, &mail(&period.email, period.period_end), EnqueueOptions::default()).await?;
            }
            Ok(ending.len())
        };
        let n = context.database.transaction("subscriptions.remind", remind).await?;
        reminded += n;
        if n == 0 {
            break;
        }
        if attempt.cancelled().is_cancelled() {
            return Err(anyhow::anyhow!("stopped after {reminded} mails").into());
        }
    }
    let lapse = async |c: &mut db::PgConnection| db::subscriptions::lapse(c, SILENT_DAYS).await;
    let lapsed = context.database.call("subscriptions.lapse", lapse).await?;
    if lapsed > 0 {
        tracing::error!(
            lapsed,
            "subscriptions were not renewed and nothing was heard of them: do webhooks arrive?"
        );
    }
    Ok(Checked { reminded, lapsed })
}

fn mail(email: &str, period_end: chrono::DateTime<chrono::Utc>) -> SendEmail {
    let day = period_end.format("%-d %B %Y");
    SendEmail {
        to: email.to_owned(),
        subject: format!("Your subscription renews on {day}"),
        text: format!(
            "Your subscription will be renewed on {day}.\n\nIf you want that, there is nothing to do. If you do not, cancel it before that day.\n"
        ),
        html: None,
    }
}
