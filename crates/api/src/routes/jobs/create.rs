//! `POST /v1/jobs`.

use axum::{
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::IntoResponse,
};
use job_specs::UserJobError;
use jobs::EnqueueOptions;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AppState, Error, Result, admission::Caller, error::Problem, extract::Json};

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
#[utoipa::path(post, path = "/v1/jobs", tag = "jobs", security(("bearer" = []), ("api_key" = [])), request_body = NewJob,
    responses((status = 202, body = Accepted), (status = 401, body = Problem), (status = 403, body = Problem),
              (status = 413, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Json(body): Json<NewJob>,
) -> Result<impl IntoResponse> {
    caller.require_scope("jobs")?;
    let options = EnqueueOptions { owner: Some(caller.user_id), ..Default::default() };
    let job = job_specs::user_job(&body.kind, body.args, options).map_err(|error| match error {
        UserJobError::UnknownKind => {
            let kinds: Vec<_> = job_specs::USER_JOBS.iter().map(|job| job.name).collect();
            Error::invalid("kind", format!("there is no such kind; there are: {}", kinds.join(", ")))
        }
        UserJobError::InvalidPayload(text) => Error::invalid("args", text),
    })?;
    let id = state
        .database
        .transaction("jobs.enqueue", async |c| job.insert(c).await.map_err(Error::from))
        .await?
        .id()
        .to_string();
    let location: [(HeaderName, String); 1] = [(header::LOCATION, format!("/v1/jobs/{id}"))];
    Ok((StatusCode::ACCEPTED, location, Json(Accepted { id })))
}
