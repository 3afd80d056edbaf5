//! One attempt at an answer: from the engine, event by event, into the run's stream.

use std::time::Duration;

use db::runs::{Begun, End};
use engine::{Answer, Asked, EngineError, Exchange, Fault, Report, Request, Timer, Usage, Want};
use http_body_util::BodyExt as _;
use runs::{Kind, Place};
use serde::Deserialize;
use sse::{Relay, Verdict};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::Context;

/// So long the store of events may be away before the run is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any answer, and bearable for the store.
const MAX_BYTES: usize = 32 << 20;

/// Why a run fails.
#[derive(Debug)]
pub(super) enum Problem {
    /// The engine, or our way to it.
    Engine(Fault),
    /// The engine told an error inside its stream: code and message.
    InStream(String, String),
    /// Redis was away for too long: the answer would have a hole.
    EventsLost,
    /// The engine does not come to an end.
    TooLong,
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Engine(fault)
    }
}

pub(super) struct Generation<'a> {
    context: &'a Context,
    run: Uuid,
    /// Of the next entry.
    place: Place,
    began: Instant,
    first_event: Option<Instant>,
    last_event: Option<Instant>,
    asked: Asked,
    /// Events with a piece of the answer.
    chunks: u64,
    bytes: usize,
    usage: Option<Usage>,
    /// The answer is complete, as far as the protocol tells.
    is_complete: bool,
}

/// What an event says about the end of its answer.
#[derive(Deserialize)]
struct Finish {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    finish_reason: Option<String>,
}

impl<'a> Generation<'a> {
    pub(super) fn new(context: &'a Context, run: Uuid, attempt: i32) -> Self {
        Self {
            context,
            run,
            place: Place { attempt, number: 0 },
            began: Instant::now(),
            first_event: None,
            last_event: None,
            asked: Asked::default(),
            chunks: 0,
            bytes: 0,
            usage: None,
            is_complete: false,
        }
    }

    /// Asks the engine and passes on its answer. Dropped in the middle, the engine's request is cancelled.
    pub(super) async fn make(&mut self, begun: &Begun) -> Result<(), Problem> {
        let request = Request::post(["chat", "completions"], begun.request.clone().into());
        let request = request.model(&begun.model).request_id(&begun.request_id);
        self.asked = request.asked();
        let Answer::Stream(mut stream) = self.context.engines.call(request, Want::Stream).await? else {
            return Err(Fault::Unexpected("it is not an event stream").into());
        };
        let config = &self.context.config.ai;
        let total_at = self.began + config.stream_timeout;
        let mut last_event = Instant::now();
        let mut relay = Relay::default();
        loop {
            let idle_at = last_event + config.idle_timeout;
            let (deadline, timer) =
                if total_at < idle_at { (total_at, Timer::Total) } else { (idle_at, Timer::Idle) };
            let Ok(frame) = timeout_at(deadline, stream.frame()).await else {
                // Of a complete answer only its end is missing.
                return if self.is_complete { Ok(()) } else { Err(Fault::Timeout(timer).into()) };
            };
            let mut events = Vec::new();
            let mut collect = |event: sse::Event<'_>| {
                events.extend(event.data().filter(|data| !data.is_empty()).map(std::borrow::Cow::into_owned));
                Verdict::Drop
            };
            let has_ended = frame.is_none();
            match frame.transpose()? {
                Some(frame) => {
                    let Ok(data) = frame.into_data() else { continue };
                    relay.push(data, &mut collect);
                }
                None => relay.finish(&mut collect),
            }
            // An event too long to be looked at passes the relay as it is.
            while let Some(passed) = relay.pop() {
                self.bytes += passed.len();
            }
            if !events.is_empty() {
                last_event = Instant::now();
            }
            let is_last = self.pass_on(events).await?;
            if is_last || (has_ended && self.is_complete) {
                return Ok(());
            }
            if has_ended {
                return Err(Fault::Truncated.into());
            }
        }
    }

    /// Puts events into the stream; true after the protocol's last one.
    async fn pass_on(&mut self, events: Vec<Vec<u8>>) -> Result<bool, Problem> {
        let mut entries = Vec::with_capacity(events.len());
        let mut end = Ok(false);
        for data in events {
            if data == b"[DONE]" {
                end = Ok(true);
                break;
            }
            self.bytes += data.len();
            if self.bytes > MAX_BYTES {
                end = Err(Problem::TooLong);
                break;
            }
            if let Some(error) = EngineError::from_event(&data) {
                end = Err(in_stream(&error));
                break;
            }
            let Ok(report) = Report::parse(&data) else {
                end = Err(Fault::Unexpected("an event of its stream is not JSON").into());
                break;
            };
            if let Some(usage) = report.usage() {
                self.usage = Some(usage);
            }
            // It stands in the last event of the run.
            if report.is_only_usage() {
                continue;
            }
            let finish: Option<Finish> = serde_json::from_slice(&data).ok();
            self.is_complete |= finish.is_some_and(|f| f.choices.iter().any(|c| c.finish_reason.is_some()));
            let now = Instant::now();
            self.first_event.get_or_insert(now);
            self.last_event = Some(now);
            self.chunks += 1;
            entries.push((Kind::Chunk, String::from_utf8_lossy(&data).into_owned()));
        }
        self.say(entries).await?;
        end
    }

    /// Adds entries to the run's stream. An engine that is quicker than Redis is held up by this.
    pub(super) async fn say(&mut self, entries: Vec<(Kind, String)>) -> Result<(), Problem> {
        if entries.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        // What Redis did not acknowledge may be there all the same; its place tells readers.
        while let Err(error) = self.context.run_events.append(self.run, self.place, &entries).await {
            if Instant::now() >= until {
                tracing::warn!(%error, run = %self.run, "a run is given up: its events cannot be stored");
                return Err(Problem::EventsLost);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.place.number += entries.len() as u64;
        Ok(())
    }

    /// Which engine was asked.
    pub(super) fn engine(&self) -> String {
        self.asked.name().map_or_else(|| "none".to_owned(), |name| name.to_string())
    }

    /// Puts the attempt that ended the run into the metrics.
    pub(super) fn record(&self, begun: &Begun, end: &End, tokens: (i64, i64)) {
        let events = self.first_event.zip(self.last_event).map(|(first, last)| (first, last, self.chunks));
        let usage = Usage { prompt: tokens.0.unsigned_abs(), completion: tokens.1.unsigned_abs() };
        let exchange = Exchange {
            operation: "chat",
            model: &begun.model,
            engine: &self.engine(),
            outcome: end.outcome,
            began: self.began,
            events,
            usage,
        };
        self.context.engines.record(&exchange, self.began.elapsed());
    }

    /// Adds to an end what was used, as far as anybody knows.
    pub(super) fn account(&self, mut end: End, begun: &Begun, started: Instant) -> End {
        end.engine = self.asked.name().map(|name| name.to_string());
        end.duration_ms = millis(started.elapsed());
        end.first_token_ms = self.first_event.map(|at| millis(at.duration_since(started)));
        let (tokens, estimated) = match self.usage {
            Some(usage) => ((usage.prompt as i64, usage.completion as i64), false),
            // An engine that failed before it said anything charges nothing, and nor does one that was not asked.
            None if self.chunks == 0 && (end.state == "failed" || end.engine.is_none()) => ((0, 0), true),
            // An event is about a token.
            None => ((begun.prompt_estimate, self.chunks as i64), true),
        };
        (end.tokens, end.estimated) = (Some(tokens), estimated);
        end
    }
}

fn in_stream(error: &EngineError) -> Problem {
    let code = error.code.clone().unwrap_or_else(|| "engine_error".to_owned());
    let is_clients = (400..500).contains(&error.status);
    let message = error.message.clone().filter(|_| is_clients);
    Problem::InStream(code, message.unwrap_or_else(|| "The AI engine failed inside its answer.".to_owned()))
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
