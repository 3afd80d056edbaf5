//! `GET /v1/admin/usage`.

use axum::extract::State;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use db::usage::{Filter, UserUsage};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    admission::Admin,
    ai::DayUsage,
    error::Problem,
    extract::{Json, Query},
};

/// The largest page.
const MAX_PAGE: u16 = 1_000;

/// Which usage.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// So many days back from now, 1 to 366; without it 30.
    #[param(minimum = 1, maximum = 366)]
    days: Option<i64>,
    /// Of the user with this id.
    user: Option<Uuid>,
    /// Of this model.
    model: Option<String>,
    /// The page after the one with this `next`.
    after: Option<String>,
    /// At most so many, 1 to 1000; without it 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u16>,
}

/// Usage of one model by one user on one day.
#[derive(Serialize, ToSchema)]
pub(super) struct UserDayUsage {
    /// The user.
    user_id: Uuid,
    #[serde(flatten)]
    usage: DayUsage,
}

/// One page of everybody's usage.
#[derive(Serialize, ToSchema)]
pub(super) struct UsagePage {
    /// False when this replica's last moments are not counted yet, because the database is slow. Ask again.
    complete: bool,
    /// By day, user and model, latest day first.
    data: Vec<UserDayUsage>,
    /// Ask for the next page with this as `after`; none when this was the last one.
    next: Option<String>,
}

/// The tokens that everybody's AI requests used, by day, user and model.
#[utoipa::path(get, path = "/v1/admin/usage", tag = "admin", security(("bearer" = [])), params(Wanted),
    responses((status = 200, body = UsagePage), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn usage(
    State(state): State<AppState>,
    _: Admin,
    Query(wanted): Query<Wanted>,
) -> Result<Json<UsagePage>> {
    let days = wanted.days.unwrap_or(30);
    if !(1..=366).contains(&days) {
        return Err(Error::invalid("days", "must be between 1 and 366"));
    }
    let limit = wanted.limit.unwrap_or(100);
    if limit == 0 || limit > MAX_PAGE {
        return Err(Error::invalid("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    if wanted.model.as_ref().is_some_and(|model| model.contains('\0')) {
        return Err(Error::invalid("model", "must not contain NUL"));
    }
    let after = wanted.after.as_deref().map(Place::decode).transpose()?;
    let complete = state.ai.flush_usage().await;
    let filter = Filter {
        since: state.clock.now() - TimeDelta::days(days),
        user_id: wanted.user,
        model: wanted.model.as_deref(),
        after: after.as_ref().map(|Place(day, user, model)| (day.as_str(), *user, model.as_str())),
        // One more than asked for tells whether there is another page.
        limit: i64::from(limit) + 1,
    };
    let mut found =
        state.database.call("usage.by_user", async |c| db::usage::by_user(c, &filter).await).await?;
    let more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = found.last().filter(|_| more).map(Place::encode);
    Ok(Json(UsagePage { complete, data: found.into_iter().map(UserDayUsage::from).collect(), next }))
}

/// Where a page ended: day, user, model.
#[derive(Debug, Deserialize)]
struct Place(String, Uuid, String);

impl Place {
    fn encode(row: &UserUsage) -> String {
        let place = serde_json::json!([row.usage.day, row.user_id, row.usage.model]);
        URL_SAFE_NO_PAD.encode(place.to_string())
    }

    fn decode(text: &str) -> Result<Self> {
        let place = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        place
            .filter(|Self(day, _, model)| !day.contains('\0') && !model.contains('\0'))
            .ok_or_else(|| Error::invalid("after", "must be the `next` of another page"))
    }
}

impl From<UserUsage> for UserDayUsage {
    fn from(row: UserUsage) -> Self {
        Self { user_id: row.user_id, usage: row.usage.into() }
    }
}
