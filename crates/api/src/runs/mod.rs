//! Resumable runs: chat completions that depend on no connection and on no API replica.
//!
//! A worker makes them (`worker::jobs::run`); their events come through Redis (the crate `runs`). Here they are started,
//! watched and stopped.
//!
//! - `create`, `show`, `events`, `stop` and `ticket` are the routes.
//! - `viewer` is one reader of one run: it catches up by itself, and then lives on what the hub sends.
//! - `hub` reads Redis for all viewers of this replica.
//!
//! `docs/removing-parts.md` says how to delete them.

mod create;
mod events;
mod hub;
mod show;
mod stop;
mod ticket;
mod viewer;

use ::runs::Events;
use chrono::{DateTime, Utc};
use config::RunsConfig;
use db::Redis;
use runtime::Lifecycle;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::hub::Hub;
use crate::{AppState, Error, Result, admission::Caller};

/// The scope that an API key needs: a run is a chat completion.
const SCOPE: &str = "ai";

/// The routes of runs. A request is as large as that of a chat completion.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create::create))
        .routes(routes!(show::show, stop::stop))
        .routes(routes!(events::events))
        .routes(routes!(ticket::create, ticket::revoke))
}

/// What the routes share; clones share everything.
#[derive(Debug, Clone)]
pub struct Runs {
    events: Events,
    hub: Hub,
}

impl Runs {
    pub(crate) fn new(redis: Redis, config: &RunsConfig, lifecycle: Lifecycle) -> Self {
        let events = Events::new(redis, config);
        Self { hub: Hub::new(events.clone(), lifecycle), events }
    }
}

/// A run, as its owner sees it.
#[derive(Debug, Serialize, ToSchema)]
struct RunBody {
    id: Uuid,
    /// `queued`, `running`, `completed`, `failed` or `stopped`.
    state: String,
    model: String,
    /// How often it was begun: more than once when a worker died or was replaced on the way.
    attempts: i32,
    /// Why it failed.
    error: Option<RunError>,
    /// What it used, when it has ended.
    usage: Option<RunUsage>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
}

/// Why a run failed.
#[derive(Debug, Serialize, ToSchema)]
struct RunError {
    /// Stable name of this kind of failure.
    code: String,
    /// What happened.
    message: String,
}

/// What a run used.
#[derive(Debug, Serialize, ToSchema)]
struct RunUsage {
    prompt_tokens: i64,
    completion_tokens: i64,
    /// The counts are ours and not the engine's.
    estimated: bool,
}

impl From<db::runs::Run> for RunBody {
    fn from(run: db::runs::Run) -> Self {
        let usage = run.prompt_tokens.zip(run.completion_tokens);
        Self {
            id: run.id,
            state: run.state,
            model: run.model,
            attempts: run.attempts,
            error: run
                .error_code
                .map(|code| RunError { code, message: run.error_message.unwrap_or_default() }),
            usage: usage.map(|(prompt_tokens, completion_tokens)| RunUsage {
                prompt_tokens,
                completion_tokens,
                estimated: run.estimated.unwrap_or(true),
            }),
            created_at: run.created_at,
            started_at: run.started_at,
            ended_at: run.ended_at,
        }
    }
}

/// The caller's own run; somebody else's is as if it were not there. One that nobody works at any more is ended first.
async fn find(state: &AppState, caller: &Caller, id: Uuid) -> Result<db::runs::Run> {
    let run = find_as_it_is(state, caller, id).await?;
    if run.ended_at.is_some() || run.has_job {
        return Ok(run);
    }
    ::runs::end_lost(&state.database, &state.runs.events, &state.limiter, Some(id)).await?;
    find_as_it_is(state, caller, id).await
}

async fn find_as_it_is(state: &AppState, caller: &Caller, id: Uuid) -> Result<db::runs::Run> {
    let found =
        state.database.call("runs.find", async |c| db::runs::find(c, caller.user_id, id).await).await?;
    found.ok_or_else(Error::not_found)
}

/// Redis is out, and without it nobody can read a run.
fn redis_is_out(error: db::RedisError) -> Error {
    let detail = "Runs need Redis, which is not available at the moment.";
    Error::unavailable("redis_unavailable", detail, std::time::Duration::from_secs(2)).with_source(error)
}
