//! `POST /v1/runs`.

use std::time::Duration;

use ::runs::{Kind, Place};
use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use db::{PgConnection, runs::NewRun};
use job_specs::Run;
use jobs::EnqueueOptions;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{RunBody, find, redis_is_out};
use crate::{
    AppState, Error, Result,
    admission::Pending,
    ai::handover::{self, Accepted},
    error::Problem,
    extract::Json,
};

/// Over what the engine may take: what happens before and after it.
const MARGIN: Duration = Duration::from_secs(120);

/// A chat completion, with whatever else the engine understands.
#[derive(ToSchema)]
#[expect(dead_code, reason = "described here, never filled: the body is read by the AI proxy")]
#[schema(example = json!({"model": "sim-small", "messages": [{"role": "user", "content": "Hello!"}]}))]
pub(super) struct RunRequest {
    /// One of `GET /v1/models`.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    /// The conversation so far.
    #[schema(min_items = 1)]
    messages: Vec<serde_json::Value>,
    /// The most tokens of an answer. Less is reserved of your limits with it than without.
    #[schema(minimum = 1, maximum = 2_147_483_647_u32)]
    max_completion_tokens: Option<u64>,
}

/// Starts a chat completion that goes on whether anybody listens or not.
///
/// Read it from `GET /v1/runs/{id}/events`, as often and from as many places as you like. It takes of the same limits as a chat
/// completion, and counts as one of the streams at a time.
#[utoipa::path(post, path = "/v1/runs", tag = "runs", security(("bearer" = []), ("api_key" = [])), request_body = RunRequest,
    responses((status = 202, body = RunBody), (status = 403, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    pending: Pending,
    request: Request,
) -> Result<impl IntoResponse> {
    // Boxed, because it is large.
    let accepted = Box::pin(handover::accept(&state.ai, pending, request)).await?;
    let caller = accepted.caller.clone();
    let id = Uuid::now_v7();
    // Readers know a stream by its first entry. Should the transaction fail, it is gone in a while.
    let first = [(Kind::Queued, serde_json::json!({ "id": id }).to_string())];
    state.runs.events.append(id, Place::default(), &first).await.map_err(redis_is_out)?;
    // The client may leave: then the run and its permit must not part.
    let work = begin(state.clone(), id, accepted);
    state.to_the_end(work).await?;
    let run = find(&state, &caller, id).await?;
    let location = HeaderValue::try_from(format!("/v1/runs/{id}")).map_err(Error::internal)?;
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(RunBody::from(run))))
}

/// Stores run and job, and leaves to them what was taken of the limits.
async fn begin(state: AppState, id: Uuid, accepted: Accepted) -> Result<()> {
    let timeout = state.config.ai.first_token_timeout + state.config.ai.stream_timeout + MARGIN;
    let owner = Some(accepted.caller.user_id);
    let held = accepted.held().ok_or_else(|| redis_is_out(db::RedisError::Open))?;
    let held = serde_json::to_value(held).map_err(Error::internal)?;
    let at_a_time = accepted.caller.bucket(&state.limiter.policies().concurrent_streams).0.rate.limit;
    state
        .database
        .transaction("runs.create", async |c: &mut PgConnection| {
            // A permit ends by itself when it waits for long; the runs that wait are still there.
            if db::runs::count_open(c, accepted.caller.user_id).await?.unsigned_abs() >= at_a_time {
                return Err(too_many(at_a_time));
            }
            let options = EnqueueOptions { owner, timeout: Some(timeout), ..EnqueueOptions::default() };
            let job_id = jobs::enqueue(c, &Run { run_id: id }, options).await?.id();
            let new = NewRun {
                id,
                user_id: accepted.caller.user_id,
                api_key_id: accepted.caller.api_key_id,
                request_id: accepted.caller.request_id.to_string(),
                job_id,
                model: accepted.model.to_string(),
                request: accepted.body.to_vec(),
                held: held.clone(),
                prompt_estimate: accepted.prompt_tokens as i64,
            };
            db::runs::insert(c, &new).await?;
            Ok(())
        })
        .await?;
    accepted.hand_over();
    Ok(())
}

fn too_many(limit: u64) -> Error {
    let detail = format!("Only {limit} runs at a time may wait or run: stop one, or wait for one to end.");
    Error::new(StatusCode::TOO_MANY_REQUESTS, "too_many_runs", detail)
        .with_retry_after(Duration::from_secs(5))
}
