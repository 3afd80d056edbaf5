//! `GET /v1/admin/mails`: what would have been mailed, in development.

use axum::extract::State;
use chrono::{DateTime, Utc};
use job_specs::SendEmail;
use jobs::{JobSpec as _, JobState, JobView, ListFilter};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{AppState, Error, Result, admission::Admin, error::Problem, extract::Json};

const MOST: usize = 50;
/// Jobs that are looked through for them: many have nobody to write to.
const JOBS: u16 = 200;

#[derive(Serialize, ToSchema)]
pub(super) struct Mails {
    data: Vec<Mail>,
}

#[derive(Serialize, ToSchema)]
struct Mail {
    /// The job that would have sent it.
    job_id: i64,
    sent_at: Option<DateTime<Utc>>,
    to: String,
    subject: String,
    text: String,
}

/// Mails of development, newest first, at most 50. They hold one-time tokens, with which an account can be taken over: so this
/// answers 404 outside development, and where a mail provider is configured; then no mail is kept either.
#[utoipa::path(get, path = "/v1/admin/mails", tag = "admin", security(("bearer" = [])),
    responses((status = 200, body = Mails), (status = 401, body = Problem), (status = 403, body = Problem),
              (status = 404, body = Problem)))]
pub(super) async fn mails(State(state): State<AppState>, _: Admin) -> Result<Json<Mails>> {
    if !state.config.shows_mails {
        return Err(Error::not_found());
    }
    let filter = ListFilter {
        queue: Some(SendEmail::QUEUE.to_owned()),
        state: Some(JobState::Completed),
        limit: JOBS,
        ..ListFilter::default()
    };
    let jobs =
        state.database.call("jobs.list", async |c| jobs::list(c, &filter).await.map_err(Error::from)).await?;
    Ok(Json(Mails { data: jobs.into_iter().filter_map(mail).take(MOST).collect() }))
}

/// The worker leaves the message in the job's result, in development without a provider and never otherwise.
fn mail(job: JobView) -> Option<Mail> {
    let mail = job.result?.get_mut("mail")?.take();
    let mail: SendEmail = serde_json::from_value(mail).ok()?;
    let SendEmail { to, subject, text, .. } = mail;
    Some(Mail { job_id: job.id, sent_at: job.finished_at, to, subject, text })
}
