//! Watches over one stream: its timers, its usage, its end.

use std::{
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::LazyLock,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use config::AiConfig;
use engine::{EngineError, Fault, Report, Timer};
use memchr::memmem::Finder;
use runtime::{Lifecycle, Phase};
use sse::{End, Event, Parts, Signal, Verdict, Watch};
use tokio::{
    task::coop::unconstrained,
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{Outcome, Protocol, failure::Stop, in_flight::InFlight, reservation::renewal_interval};

/// After the last event the engine's regular end is awaited so long, so that its connection can be used again.
const AFTER_LAST: Duration = Duration::from_millis(250);
const PING: &[u8] = b": ping\n\n";
/// For a stream with event ids. A blank line would then be an event to the OpenAI Python SDK, and it chokes on empty ones.
const PING_IN_NEXT_EVENT: &[u8] = b": ping\n";

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""usage""#));
static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""error""#));
static FINISH: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""finish_reason""#));

/// The watch of a stream. It owns the request's guard: dropped with the body, it accounts for the stream.
pub(super) struct StreamWatch {
    request: InFlight,
    protocol: Protocol,
    strip_usage: bool,
    /// The answer is complete, as far as the protocol tells.
    finished: bool,
    /// The engine reported an error inside the stream.
    failed: bool,
    has_ids: bool,
    /// Events that went out, for the number of an error event.
    sent: u64,
    timers: Timers,
    last_call: CancellationToken,
    /// Wakes the stream at the last call.
    drain: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Who is woken by timer and drain.
    waker: Option<Waker>,
    /// A frame came since the source was last silent.
    after_frame: bool,
}

/// Times of a stream. There is one sleep, which is armed for the earliest deadline and not touched by events: those only move
/// deadlines later, which is noticed when it fires.
struct Timers {
    idle_timeout: Duration,
    heartbeat: Duration,
    total: Instant,
    renewal: Instant,
    frame_at: Instant,
    last_sent: Instant,
    /// How long the engine has been silent since its last event, not counting the present silence. Only waiting counts: while
    /// the client takes nothing, the engine is not read and cannot be blamed.
    quiet: Duration,
    silent_since: Option<Instant>,
    last_event_at: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
    armed: Instant,
}

impl StreamWatch {
    pub(super) fn new(
        request: InFlight,
        protocol: Protocol,
        strip_usage: bool,
        config: &AiConfig,
        lifecycle: &Lifecycle,
    ) -> Self {
        let started = request.started();
        let now = Instant::now();
        let armed = now + config.heartbeat;
        let last_call = lifecycle.token(Phase::LastCall).cloned().expect("the last call has a token");
        Self {
            request,
            protocol,
            strip_usage,
            finished: false,
            failed: false,
            has_ids: false,
            sent: 0,
            timers: Timers {
                idle_timeout: config.idle_timeout,
                heartbeat: config.heartbeat,
                total: started + config.stream_timeout,
                renewal: started + renewal_interval(config.heartbeat),
                frame_at: now,
                last_sent: now,
                quiet: Duration::ZERO,
                silent_since: None,
                last_event_at: None,
                sleep: Box::pin(sleep_until(armed)),
                armed,
            },
            drain: Box::pin(last_call.clone().cancelled_owned()),
            last_call,
            waker: None,
            after_frame: false,
        }
    }

    fn fail(&mut self, stop: impl Into<Stop>) -> Bytes {
        let stop = stop.into();
        self.request.fail(&stop);
        stop.event(self.protocol, self.sent)
    }

    /// The protocol's last event is about to go out.
    fn finish(&mut self) -> Verdict {
        self.finished = true;
        self.request.end(if self.failed { Outcome::EngineError } else { Outcome::Ok });
        Verdict::Last
    }

    fn chat(&mut self, data: &[u8]) -> Verdict {
        if data == b"[DONE]" {
            return self.finish();
        }
        if let Some(at) = FINISH.find(data) {
            let rest = data[at + FINISH.needle().len()..].iter().find(|b| !b" \t:".contains(b));
            self.finished |= rest == Some(&b'"');
        }
        if ERROR.find(data).is_some() && EngineError::from_event(data).is_some() {
            self.failed = true;
        }
        if self.look_for_usage(data) && self.strip_usage { Verdict::Drop } else { Verdict::Keep }
    }

    fn responses(&mut self, name: &[u8], data: &[u8]) -> Verdict {
        match name {
            b"response.completed" | b"response.incomplete" => {
                self.look_for_usage(data);
                self.finish()
            }
            b"response.failed" | b"error" => {
                self.look_for_usage(data);
                self.failed = true;
                self.finish()
            }
            _ => Verdict::Keep,
        }
    }

    /// Notes usage that the event reports. True when it reports nothing else.
    fn look_for_usage(&mut self, data: &[u8]) -> bool {
        if !may_tell_usage(data) {
            return false;
        }
        let Ok(report) = Report::parse(data) else { return false };
        if let Some(usage) = report.usage() {
            self.request.report(usage);
        }
        report.is_only_usage()
    }

    /// Half an event at the end of a stream that ended well: half a JSON document would only break the client.
    fn is_torn(&self, event: Event<'_>, data: &[u8]) -> bool {
        event.is_cut()
            && self.protocol != Protocol::Passthrough
            && data != b"[DONE]"
            && Report::parse(data).is_err()
    }

    /// When something is due: what.
    fn due(&mut self, now: Instant, between: bool) -> Option<Signal> {
        if self.finished && self.request.is_over() {
            let since = self.timers.last_event_at.unwrap_or(now);
            return (now >= since + AFTER_LAST).then(|| Signal::End(Bytes::new()));
        }
        if now >= self.timers.total {
            return Some(Signal::End(self.fail(Fault::Timeout(Timer::Total))));
        }
        if self.timers.idle_at().is_some_and(|at| now >= at) {
            if self.finished {
                // The answer is complete; only its end is missing.
                self.request.end(Outcome::Ok);
                return Some(Signal::End(Bytes::new()));
            }
            return Some(Signal::End(self.fail(Fault::Timeout(Timer::Idle))));
        }
        if self.request.is_revoked() {
            return Some(Signal::End(self.fail(Stop::Revoked)));
        }
        if now >= self.timers.renewal {
            self.timers.renewal = now + renewal_interval(self.timers.heartbeat);
            self.request.renew();
        }
        if between && now >= self.timers.last_sent + self.timers.heartbeat {
            self.timers.last_sent = now;
            let ping = if self.has_ids { PING_IN_NEXT_EVENT } else { PING };
            return Some(Signal::Insert(Bytes::from_static(ping)));
        }
        None
    }

    /// When something will be due next.
    fn next_deadline(&self, between: bool) -> Instant {
        let timers = &self.timers;
        if self.finished && self.request.is_over() {
            return timers.last_event_at.unwrap_or(timers.total) + AFTER_LAST;
        }
        let mut next = timers.total.min(timers.renewal);
        if let Some(at) = timers.idle_at() {
            next = next.min(at);
        }
        if between {
            next = next.min(timers.last_sent + timers.heartbeat);
        }
        next
    }
}

impl Timers {
    /// When the engine will have been silent for too long. The first event has a timeout of its own, with the call.
    fn idle_at(&self) -> Option<Instant> {
        self.last_event_at?;
        Some(self.silent_since? + self.idle_timeout.saturating_sub(self.quiet))
    }
}

impl Watch<Stop> for StreamWatch {
    fn frame(&mut self, _length: usize) -> ControlFlow<Bytes> {
        let now = Instant::now();
        self.after_frame = true;
        self.timers.frame_at = now;
        if let Some(since) = self.timers.silent_since.take() {
            self.timers.quiet += now.duration_since(since);
        }
        if now >= self.timers.total {
            return ControlFlow::Break(self.fail(Fault::Timeout(Timer::Total)));
        }
        ControlFlow::Continue(())
    }

    fn event(&mut self, event: Event<'_>) -> Verdict {
        let parts = event.parts();
        let Some(data) = parts.data.as_deref().filter(|data| !data.is_empty()) else {
            return self.without_data(&parts);
        };
        if self.is_torn(event, data) {
            return Verdict::Drop;
        }
        let now = self.timers.frame_at;
        self.timers.quiet = Duration::ZERO;
        self.timers.last_event_at = Some(now);
        self.request.event(now);
        self.has_ids |= parts.has_id;
        let verdict = match self.protocol {
            Protocol::Responses => self.responses(parts.name.unwrap_or_default(), data),
            Protocol::Passthrough => {
                self.failed |= parts.name == Some(b"error");
                self.look_for_usage(data);
                Verdict::Keep
            }
            _ => self.chat(data),
        };
        if verdict == Verdict::Keep {
            self.sent += 1;
            self.timers.last_sent = now;
        }
        verdict
    }

    fn poll_signal(&mut self, context: &mut Context<'_>, between: bool) -> Poll<Signal> {
        self.timers.silent_since.get_or_insert_with(Instant::now);
        let new_waker = !self.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if new_waker {
            self.waker = Some(context.waker().clone());
        }
        // The frame and the last call may wake the stream in one turn, so both are looked at. Once registered, a look is enough: it
        // takes a lock that all streams share for a moment only.
        let after_frame = std::mem::take(&mut self.after_frame);
        let drains = if new_waker || !after_frame {
            self.drain.as_mut().poll(context).is_ready()
        } else {
            self.last_call.is_cancelled()
        };
        if drains {
            return Poll::Ready(Signal::End(self.fail(Stop::ShuttingDown)));
        }
        loop {
            let now = Instant::now();
            if let Some(signal) = self.due(now, between) {
                return Poll::Ready(signal);
            }
            let next = self.next_deadline(between);
            if !new_waker && now < self.timers.armed && self.timers.armed <= next {
                return Poll::Pending;
            }
            if self.timers.armed != next {
                self.timers.armed = next;
                self.timers.sleep.as_mut().reset(next);
            }
            // Without tokio's budget: with none left the sleep is not registered, and the next turn, which finds it armed, would not
            // poll it again.
            let mut sleep = pin!(unconstrained(self.timers.sleep.as_mut()));
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn end(&mut self, end: End<Stop>) -> Bytes {
        match end {
            End::Failed(stop) => self.fail(stop),
            End::Clean if self.failed => {
                self.request.end(Outcome::EngineError);
                Bytes::new()
            }
            // Some engines leave out the last event; then the answer's own end has to do.
            End::Clean if self.finished || self.protocol == Protocol::Passthrough => {
                self.request.end(Outcome::Ok);
                Bytes::new()
            }
            End::Clean => self.fail(Fault::Truncated),
        }
    }
}

/// Whether it is worth a look: OpenAI sends `"usage":null` with every event but the last one.
fn may_tell_usage(data: &[u8]) -> bool {
    USAGE.find_iter(data).any(|at| {
        let mut rest = data[at + USAGE.needle().len()..].iter().filter(|byte| !byte.is_ascii_whitespace());
        rest.next() == Some(&b':') && rest.next() != Some(&b'n')
    })
}

impl StreamWatch {
    /// An event without data says nothing. Comments are forwarded. The rest is left out where OpenAI's SDKs read, because
    /// they take it for an event and find no JSON in it.
    fn without_data(&mut self, parts: &Parts<'_>) -> Verdict {
        if parts.is_comment() || self.protocol == Protocol::Passthrough {
            self.has_ids |= parts.has_id;
            self.timers.last_sent = self.timers.frame_at;
            return Verdict::Keep;
        }
        Verdict::Drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_event_that_may_tell_usage_is_parsed_for_it() {
        for (data, told) in [
            (r#"{"usage":{"prompt_tokens":1}}"#, true),
            ("{\"usage\" :\n {\"prompt_tokens\":1}}", true),
            (r#"{"usage":null,"x":{"usage":{"prompt_tokens":1}}}"#, true),
            (r#"{"usage":null}"#, false),
            (r#"{"usage" : null}"#, false),
            (r#"{"content":"usage"}"#, false),
            (r#"{"content":"\"usage\":{}"}"#, false),
            (r#"{"usage""#, false),
            ("{}", false),
        ] {
            assert_eq!(may_tell_usage(data.as_bytes()), told, "{data}");
        }
    }
}
