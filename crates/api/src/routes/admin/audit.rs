//! `GET /v1/admin/audit`.

use axum::extract::State;
use chrono::{DateTime, Utc};
use db::audit::{Entry, Filter};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    admission::Admin,
    error::Problem,
    extract::{Json, Query},
};

/// The largest page.
const MAX_PAGE: u16 = 200;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Of the user with this id.
    user: Option<Uuid>,
    /// Of this kind, such as `login` or `refresh_reuse`.
    event: Option<String>,
    /// Not before this time.
    since: Option<DateTime<Utc>>,
    /// Older than the event with this id: `next` of the page before.
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,18}$")]
    before: Option<i64>,
    /// At most so many, 1 to 200; without it 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
}

/// A security event.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditEvent {
    /// A number, as text: JavaScript loses the digits of large ones.
    id: String,
    occurred_at: DateTime<Utc>,
    event: String,
    user_id: Option<Uuid>,
    session_id: Option<Uuid>,
    ip: Option<String>,
    request_id: Option<String>,
    detail: serde_json::Value,
}

/// One page of events, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditPage {
    data: Vec<AuditEvent>,
    /// Ask for the next page with this as `before`; none when this was the last one.
    next: Option<String>,
}

impl From<Entry> for AuditEvent {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id.to_string(),
            occurred_at: entry.occurred_at,
            event: entry.event,
            user_id: entry.user_id,
            session_id: entry.session_id,
            ip: entry.ip,
            request_id: entry.request_id,
            detail: entry.detail,
        }
    }
}

/// Security events, newest first.
#[utoipa::path(get, path = "/v1/admin/audit", tag = "admin", security(("bearer" = [])), params(Wanted),
    responses((status = 200, body = AuditPage), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn audit(
    State(state): State<AppState>,
    _: Admin,
    Query(wanted): Query<Wanted>,
) -> Result<Json<AuditPage>> {
    let limit = wanted.limit.unwrap_or(50);
    if limit == 0 || limit > MAX_PAGE {
        return Err(Error::invalid("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    if wanted.event.as_ref().is_some_and(|event| event.contains('\0')) {
        return Err(Error::invalid("event", "must not contain NUL"));
    }
    let filter = Filter {
        user_id: wanted.user,
        event: wanted.event.as_deref(),
        since: wanted.since,
        before: wanted.before,
        // One more than asked for tells whether there is another page.
        limit: i64::from(limit) + 1,
    };
    let mut found = state.database.call("audit.list", async |c| db::audit::list(c, &filter).await).await?;
    let more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = found.last().filter(|_| more).map(|entry| entry.id.to_string());
    Ok(Json(AuditPage { data: found.into_iter().map(AuditEvent::from).collect(), next }))
}
