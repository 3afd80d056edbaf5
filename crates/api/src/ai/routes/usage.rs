//! `GET /v1/usage`.

use axum::extract::State;
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    AppState, Error, Result,
    admission::Caller,
    error::Problem,
    extract::{Json, Query},
};

/// Which usage.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Period {
    /// So many days back from now, 1 to 366; without it 30.
    #[param(minimum = 1, maximum = 366)]
    days: Option<i64>,
}

/// The caller's usage.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageReport {
    /// False when the last moments are not counted yet, because the database is slow. Ask again.
    complete: bool,
    /// By day and model, latest first.
    data: Vec<DayUsage>,
}

/// Usage of one model on one day.
#[derive(Serialize, ToSchema)]
pub(crate) struct DayUsage {
    /// The day (UTC).
    #[schema(example = "2026-11-21")]
    day: String,
    /// The model.
    model: String,
    /// Requests that were admitted.
    requests: i64,
    /// Those of them that did not end well.
    errors: i64,
    /// Those of them that the cache answered: they cost no tokens.
    cached: i64,
    /// Tokens read.
    prompt_tokens: i64,
    /// Tokens written.
    completion_tokens: i64,
    /// Both.
    total_tokens: i64,
}

/// The tokens that the caller's AI requests used, by day and model.
///
/// A request is counted as soon as its answer has ended: what this replica has not written yet is written first.
#[utoipa::path(get, path = "/v1/usage", tag = "ai", security(("bearer" = []), ("api_key" = [])), params(Period),
    responses((status = 200, body = UsageReport), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 403, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn usage(
    State(state): State<AppState>,
    caller: Caller,
    Query(period): Query<Period>,
) -> Result<Json<UsageReport>> {
    caller.require_scope("ai")?;
    let days = period.days.unwrap_or(30);
    if !(1..=366).contains(&days) {
        return Err(Error::invalid("days", "must be between 1 and 366"));
    }
    let complete = state.ai.flush_usage().await;
    let since = state.clock.now() - TimeDelta::days(days);
    let by_day = async |c: &mut db::PgConnection| db::usage::by_day(c, caller.user_id, since).await;
    let rows = state.database.call("usage.by_day", by_day).await?;
    let data = rows.into_iter().map(DayUsage::from).collect();
    Ok(Json(UsageReport { complete, data }))
}

impl From<db::usage::DayUsage> for DayUsage {
    fn from(row: db::usage::DayUsage) -> Self {
        Self {
            day: row.day,
            model: row.model,
            requests: row.requests,
            errors: row.errors,
            cached: row.cached,
            prompt_tokens: row.prompt_tokens,
            completion_tokens: row.completion_tokens,
            total_tokens: row.prompt_tokens + row.completion_tokens,
        }
    }
}
