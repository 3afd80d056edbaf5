//! One viewer of one run.
//!
//! It reads what there is from the stream itself, and then lives on what the hub sends. When it falls behind, it reads for
//! itself again. Every entry knows its place, so whatever comes twice is passed over and whatever is missing is told.

use std::{collections::VecDeque, fmt::Write as _, sync::Arc, time::Duration};

use ::runs::{Entry, EventId, Kind, Place, Ticket};
use bytes::Bytes;
use db::{RedisError, runs::Run};
use runtime::{Counted, Phase};
use serde_json::json;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};
use uuid::Uuid;

use super::{RunBody, find};
use crate::{AppState, admission::Caller, stream_permit::StreamPermit};

/// How often the database is asked whether the credential still holds and the run still runs: with the heartbeat, but within
/// these bounds.
const LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// For so long Redis may be away before the database has the last word. A worker gives a run up after the same time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon a read that failed is tried again.
const PAUSE: Duration = Duration::from_millis(250);
/// The id of the last event. Whoever has seen it has seen everything.
const END: &str = "end";

/// Where a viewer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// With the first event.
    Begin,
    /// After this one.
    After(EventId),
    /// After the last one.
    End,
}

/// What was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nothing yet.
    Nothing,
    /// Something that is not there any more.
    Unknown,
    /// Everything up to here.
    UpTo(Place),
}

pub(super) struct Viewer {
    state: AppState,
    caller: Caller,
    ticket: Option<Ticket>,
    permit: StreamPermit,
    run: Uuid,
    /// Set when something is to be sent before anything else.
    greeting: Option<Bytes>,
    position: Option<EventId>,
    seen: Seen,
    /// From the hub; `None` while Redis is out.
    live: Option<Receiver<Arc<Entry>>>,
    /// There may be entries that the hub does not send.
    is_behind: bool,
    /// Since when they cannot be read.
    blind_since: Option<Instant>,
    backlog: VecDeque<Entry>,
    /// The database says that the run has ended.
    ended: Option<Run>,
    is_over: bool,
    look_at: Instant,
    heartbeat_at: Instant,
    _counted: Counted,
}

impl Viewer {
    pub(super) fn new(
        state: AppState,
        caller: Caller,
        ticket: Option<Ticket>,
        permit: StreamPermit,
        run: Uuid,
        since: Since,
    ) -> Self {
        let heartbeat_at = Instant::now() + state.config.ai.heartbeat;
        let (position, seen) = match since {
            Since::After(id) => (Some(id), Seen::Unknown),
            Since::Begin | Since::End => (None, Seen::Nothing),
        };
        Self {
            state,
            caller,
            ticket,
            permit,
            run,
            // EventSource asks again after a second.
            greeting: Some(Bytes::from_static(b"retry: 1000\n\n")),
            position,
            seen,
            live: None,
            is_behind: true,
            blind_since: None,
            backlog: VecDeque::new(),
            ended: None,
            is_over: false,
            look_at: Instant::now(),
            heartbeat_at,
            _counted: Counted::in_gauge(metrics::gauge!("run_viewers")),
        }
    }

    /// What is sent next; `None` ends the stream.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        while !self.is_over {
            if let Some(entry) = self.backlog.pop_front() {
                match self.show(&entry) {
                    Some(frame) => return Some(frame),
                    None => continue,
                }
            }
            if self.is_behind {
                match self.catch_up().await {
                    Ok(()) => self.blind_since = None,
                    Err(_) => drop(self.blind_since.get_or_insert_with(Instant::now)),
                }
            }
            let redis_is_out = self.blind_since.is_some_and(|since| since.elapsed() >= PATIENCE);
            if !self.backlog.is_empty() {
                continue;
            }
            if let Some(run) = self.ended.take_if(|_| redis_is_out || !self.is_behind) {
                return Some(self.end_without_entry(run, redis_is_out));
            }
            tokio::select! {
                entry = receive(&mut self.live) => match entry {
                    Ok(entry) => if let Some(frame) = self.show(&entry) { return Some(frame) },
                    Err(_) => self.is_behind = true,
                },
                () = tokio::time::sleep(PAUSE), if self.blind_since.is_some() => {}
                () = tokio::time::sleep_until(self.look_at) => if let Some(frame) = self.look().await { return Some(frame) },
                () = tokio::time::sleep_until(self.heartbeat_at) => return Some(self.heartbeat().await),
                // It is taken up again on another replica, exactly where it ends here.
                () = self.state.lifecycle.reached(Phase::Closing) => return None,
            }
        }
        None
    }

    /// Reads a page of what is in the stream after the position.
    async fn catch_up(&mut self) -> Result<(), RedisError> {
        if self.live.is_none() {
            self.live = Some(self.state.runs.hub.subscribe(self.run).await?);
        }
        let from = self.position.unwrap_or_default();
        let (entries, more) = self.state.runs.events.read(self.run, from).await?;
        self.backlog = entries.into();
        self.is_behind = more;
        // The entry at the position is read to see whether it is still there: then nothing after it is missing.
        if let Some(own) = self.backlog.pop_front_if(|entry| Some(entry.id) == self.position)
            && self.seen == Seen::Unknown
        {
            self.seen = Seen::UpTo(own.place);
        }
        Ok(())
    }

    /// An entry as an event; `None` when it was seen, or is of an attempt that is void.
    fn show(&mut self, entry: &Entry) -> Option<Bytes> {
        self.position = self.position.max(Some(entry.id));
        let is_end = entry.kind == Kind::End;
        let is_next = match self.seen {
            Seen::Nothing => entry.place == Place::default(),
            Seen::Unknown => false,
            Seen::UpTo(place) if entry.place <= place => return None,
            Seen::UpTo(place) => is_end || place.is_followed_by(entry.place),
        };
        self.seen = Seen::UpTo(entry.place);
        self.is_over = is_end;
        let mut frame = if is_next { String::new() } else { trimmed() };
        let id = entry.id.to_string();
        match entry.kind {
            Kind::Chunk => write_event(&mut frame, Some(&id), None, &entry.data),
            Kind::End => write_event(&mut frame, Some(END), Some(entry.kind.as_str()), &entry.data),
            kind => write_event(&mut frame, Some(&id), Some(kind.as_str()), &entry.data),
        }
        Some(frame.into())
    }

    /// The end as the database knows it: the stream is gone, or its writer died before the last word.
    fn end_without_entry(&mut self, run: Run, redis_is_out: bool) -> Bytes {
        self.is_over = true;
        let is_whole = matches!(self.seen, Seen::UpTo(_)) && !redis_is_out;
        let mut frame = if is_whole { String::new() } else { trimmed() };
        let RunBody { state, error, usage, .. } = run.into();
        let data = json!({ "state": state, "error": error, "usage": usage }).to_string();
        write_event(&mut frame, Some(END), Some(Kind::End.as_str()), &data);
        frame.into()
    }

    /// Asks whether this may go on. What cannot be asked at the moment is asked the next time.
    async fn look(&mut self) -> Option<Bytes> {
        self.look_at = Instant::now() + self.state.config.ai.heartbeat.clamp(LOOKS.0, LOOKS.1);
        let mut allowed = self.caller.is_still_allowed(&self.state).await.unwrap_or(true);
        if let Some(ticket) = &self.ticket {
            let holder = self.state.runs.events.ticket(self.run, ticket).await;
            allowed &= !matches!(holder, Ok(None));
        }
        let run = find(&self.state, &self.caller, self.run).await;
        let is_gone = run.as_ref().is_err_and(|error| error.status() == 404);
        if !allowed || is_gone {
            self.is_over = true;
            let detail = "The session, API key or ticket was ended, or the run was deleted.";
            let mut frame = String::new();
            write_event(
                &mut frame,
                None,
                Some("revoked"),
                &json!({ "code": "revoked", "detail": detail }).to_string(),
            );
            return Some(frame.into());
        }
        if let Ok(run) = run
            && run.ended_at.is_some()
        {
            // What the stream has to say comes first.
            self.is_behind = true;
            self.ended = Some(run);
        }
        None
    }

    async fn heartbeat(&mut self) -> Bytes {
        self.heartbeat_at = Instant::now() + self.state.config.ai.heartbeat;
        self.permit.renew().await;
        Bytes::from_static(b": ping\n\n")
    }
}

async fn receive(live: &mut Option<Receiver<Arc<Entry>>>) -> Result<Arc<Entry>, RecvError> {
    match live {
        Some(live) => live.recv().await,
        None => std::future::pending().await,
    }
}

fn trimmed() -> String {
    let mut frame = String::new();
    let data = r#"{"code":"trimmed","detail":"Events before this one are no longer kept."}"#;
    write_event(&mut frame, None, Some("trimmed"), data);
    frame
}

/// One event in the format of <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
fn write_event(frame: &mut String, id: Option<&str>, name: Option<&str>, data: &str) {
    for (field, value) in [("id", id), ("event", name)] {
        if let Some(value) = value {
            let _ = writeln!(frame, "{field}: {value}");
        }
    }
    for line in data.split(['\r', '\n']) {
        let _ = writeln!(frame, "data: {line}");
    }
    frame.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_written_so_that_nothing_in_it_can_end_it_early() {
        let mut frame = String::new();
        write_event(&mut frame, Some("1-0"), None, "{\"a\":\r1}\n\ndata: x");
        assert_eq!(frame, "id: 1-0\ndata: {\"a\":\ndata: 1}\ndata: \ndata: data: x\n\n");
    }
}
