//! `POST /v1/jobs`.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use jobs::{EnqueueOptions, Enqueued, Unique};
use limits::{Policies, Policy};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    AppState, Error, Result,
    admission::{Charged, RoutePolicy},
    error::Problem,
    extract::Json,
    operator::refuse_job,
};

/// A key is remembered so long, whatever becomes of its job. Finished jobs are kept at least as long.
const KEY_COUNTS: Duration = Duration::from_secs(24 * 3_600);

/// Starting jobs has a limit of its own.
pub(super) struct UserJobs;

impl RoutePolicy for UserJobs {
    fn policy(policies: &Policies) -> &Policy {
        &policies.user_jobs
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"kind": "echo", "args": {"message": "hello"}}))]
pub(super) struct NewJob {
    /// Which kind; `echo` is there to try.
    kind: String,
    /// What the kind needs.
    #[serde(default)]
    args: serde_json::Value,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Accepted {
    id: String,
}

/// Enqueues a job of a kind that users may start, and answers at once; the worker runs it.
///
/// With an `Idempotency-Key` a request that is sent again within a day starts nothing: it gets the same answer, with
/// `Idempotent-Replayed: true`.
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", security(("bearer" = []), ("api_key" = [])), request_body = NewJob,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable characters; counts per user and kind")),
    responses((status = 202, body = Accepted), (status = 403, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    Charged { caller, .. }: Charged<UserJobs>,
    headers: HeaderMap,
    Json(body): Json<NewJob>,
) -> Result<impl IntoResponse> {
    caller.require_scope("jobs")?;
    let unique = idempotency_key(&headers)?
        .map(|key| Unique::by_key(format!("{}:{key}", caller.user_id)).for_period(KEY_COUNTS));
    let options = EnqueueOptions { owner: Some(caller.user_id), unique, ..Default::default() };
    let job = job_specs::user_job(&body.kind, body.args, options)
        .map_err(|error| refuse_job(error, job_specs::USER_JOBS.iter().map(|job| job.name)))?;
    let enqueued = state
        .database
        .transaction("jobs.enqueue", async |c| {
            let enqueued = job.insert(c).await?;
            if let Enqueued::Duplicate(id) = enqueued
                && jobs::find(c, id).await?.is_some_and(|first| first.args != *job.args())
            {
                let detail = "This Idempotency-Key was used for another request: take a new one.";
                return Err(Error::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail));
            }
            Ok(enqueued)
        })
        .await?;
    let id = enqueued.id().to_string();
    let mut answer = HeaderMap::new();
    answer
        .insert(header::LOCATION, HeaderValue::try_from(format!("/v1/jobs/{id}")).map_err(Error::internal)?);
    if !enqueued.is_new() {
        answer.insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
    }
    Ok((StatusCode::ACCEPTED, answer, Json(Accepted { id })))
}

/// The key as the client wrote it (draft-ietf-httpapi-idempotency-key-header).
fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let fine = |key: &&str| (1..=255).contains(&key.len());
    match key.to_str().ok().filter(fine) {
        Some(key) if keys.next().is_none() => Ok(Some(key)),
        _ => Err(Error::bad_request(
            "invalid_idempotency_key",
            "Idempotency-Key must be one header with 1 to 255 printable ASCII characters.",
        )),
    }
}
