//! `GET /v1/jobs/{id}/events`: a job's progress as an event stream.
//!
//! Each change is one `job` event with the whole job; the stream ends when the job is over, when it was watched for ten
//! minutes, or when the process shuts down (EventSource then asks again). A session or key that was ended ends it too, within a
//! second, with an `error` event.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse,
        sse::{Event, Sse},
    },
};
use futures_util::stream;
use runtime::Phase;
use tokio::time::Instant;

use super::{JobBody, find};
use crate::{
    AppState, Result,
    admission::{Caller, Pending},
    error::Problem,
    extract::Path,
    openapi::ServerSentEvent,
    stream_permit::StreamPermit,
};

const POLL: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(600);

struct Watch {
    state: AppState,
    caller: Caller,
    permit: StreamPermit,
    id: i64,
    shown: JobBody,
    over: bool,
    until: Instant,
    poll_at: Instant,
    heartbeat_at: Instant,
}

/// A job's progress as an event stream: each change is one `job` event with the whole job.
///
/// The stream ends when the job is over, and after ten minutes; EventSource then asks again.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", tag = "jobs", security(("bearer" = []), ("api_key" = [])),
    params(("id" = i64, Path)),
    responses((status = 200, body = ServerSentEvent, content_type = "text/event-stream"), (status = 403, body = Problem)))]
pub(super) async fn events(
    State(state): State<AppState>,
    pending: Pending,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse> {
    let mut permit = StreamPermit::new(state.limiter.clone(), state.lifecycle.clone());
    let (caller, _) = pending.admit(|admission, caller| permit.add_to(admission, caller)).await?;
    permit.admitted();
    caller.require_scope("jobs")?;
    let job = find(&state, &caller, id).await?;
    let (over, shown) = (job.state.is_final(), JobBody::from(job));
    let first = event(&shown);
    let now = Instant::now();
    let (poll_at, heartbeat_at) = (now + POLL, now + state.config.ai.heartbeat);
    let watch = Watch { state, caller, permit, id, shown, over, until: now + LONGEST, poll_at, heartbeat_at };
    let rest = stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok::<_, Infallible>(event), watch))
    });
    let all = futures_util::StreamExt::chain(stream::iter([Ok(first)]), rest);
    Ok(([("x-accel-buffering", "no")], Sse::new(all)))
}

impl Watch {
    /// The next change or heartbeat; `None` ends the stream.
    async fn next(&mut self) -> Option<Event> {
        while !self.over && Instant::now() < self.until {
            tokio::select! {
                () = tokio::time::sleep_until(self.poll_at) => self.poll_at = Instant::now() + POLL,
                () = tokio::time::sleep_until(self.heartbeat_at) => return Some(self.heartbeat().await),
                () = self.state.lifecycle.reached(Phase::LastCall) => return None,
            }
            if let Ok(false) = self.caller.is_still_allowed(&self.state).await {
                self.over = true;
                let text = r#"{"code":"revoked","detail":"This session or API key was ended."}"#;
                return Some(Event::default().event("error").data(text));
            }
            // A database that is away for a moment must not end the stream.
            let Ok(job) = find(&self.state, &self.caller, self.id).await else { continue };
            self.over = job.state.is_final();
            let body = JobBody::from(job);
            if self.shown != body {
                let event = event(&body);
                self.shown = body;
                return Some(event);
            }
        }
        None
    }

    async fn heartbeat(&mut self) -> Event {
        self.heartbeat_at = Instant::now() + self.state.config.ai.heartbeat;
        self.permit.renew().await;
        Event::default().comment("ping")
    }
}

fn event(body: &JobBody) -> Event {
    Event::default().event("job").data(serde_json::to_string(body).unwrap_or_default())
}
