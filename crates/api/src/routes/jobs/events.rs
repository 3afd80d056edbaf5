//! `GET /v1/jobs/{id}/events`: a job's progress as an event stream.
//!
//! Each change is one `job` event with the whole job; the stream ends when the job is over, when it was watched for ten
//! minutes, when the session was ended, or when the process shuts down (EventSource then asks again).

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use runtime::Phase;
use tokio::time::Instant;

use super::{JobBody, find};
use crate::{AppState, Result, admission::Caller, error::Problem, extract::Path};

const POLL: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(600);

struct Watch {
    state: AppState,
    caller: Caller,
    id: i64,
    shown: Option<JobBody>,
    over: bool,
    until: Instant,
}

/// A job's progress as an event stream: each change is one `job` event with the whole job.
///
/// The stream ends when the job is over, and after ten minutes; EventSource then asks again.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = i64, Path)),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = 403, body = Problem)))]
pub(super) async fn events(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse> {
    caller.require_scope("jobs")?;
    let first = find(&state, &caller, id).await?;
    let over = first.state.is_final();
    let shown = JobBody::from(first);
    let first = event(&shown);
    let watch = Watch { state, caller, id, shown: Some(shown), over, until: Instant::now() + LONGEST };
    let rest = stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok::<_, Infallible>(event), watch))
    });
    let all = futures_util::StreamExt::chain(stream::iter([Ok(first)]), rest);
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15)).text("ping");
    Ok(([("x-accel-buffering", "no")], Sse::new(all).keep_alive(keep_alive)))
}

impl Watch {
    /// The next change; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        while !self.over && Instant::now() < self.until {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = self.state.lifecycle.reached(Phase::LastCall) => return None,
            }
            if self.caller.was_revoked(&self.state).await {
                return None;
            }
            // A database that is away for a moment must not end the stream.
            let Ok(job) = find(&self.state, &self.caller, self.id).await else { continue };
            self.over = job.state.is_final();
            let body = JobBody::from(job);
            if self.shown.as_ref() != Some(&body) {
                let event = event(&body);
                self.shown = Some(body);
                return Some(event);
            }
        }
        None
    }
}

fn event(body: &JobBody) -> Event {
    Event::default().event("job").data(serde_json::to_string(body).unwrap_or_default())
}
