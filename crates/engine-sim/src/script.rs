//! An answer as a sequence of steps, and the body that performs them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::{Either, Full};
use tokio::time::{Instant, Sleep};

use crate::stats::{Exchange, Outcome};
use crate::wire::Link;

/// A whole body, or one that is performed step by step.
pub(crate) type SimBody = Either<Full<Bytes>, Player>;

/// Steps are made one at a time, so that an endless stream costs no memory.
pub(crate) type Steps = Box<dyn Iterator<Item = Step> + Send>;

/// What a body does next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Hand this over; what is ready together may leave in one write.
    Send(Bytes),
    /// Wait until the next token is due.
    Tick,
    Pause(Duration),
    /// Write out what was handed over before anything else happens.
    Flush,
    /// Never continue.
    Hang,
    /// Reset the connection (TCP RST).
    Reset,
    /// Write the head and the first half of an HTTP chunk, then close.
    HalfChunk(Bytes),
}

/// What a protocol module answers.
pub(crate) enum Answer {
    /// One JSON document that takes as long as this many tokens.
    Json {
        body: Vec<u8>,
        tokens: usize,
    },
    Stream(Script),
}

/// An event stream.
pub(crate) struct Script {
    /// Everything before the closing event.
    pub(crate) steps: Steps,
    /// The event that says that the stream is complete, e.g. `data: [DONE]`.
    pub(crate) closing: Bytes,
    /// The event with which this protocol reports a failure in the middle of a stream.
    pub(crate) failure: Bytes,
}

/// Performs steps as an HTTP body.
///
/// Dropping it before the last step is how a client that left is noticed: hyper drops the body with the connection.
pub(crate) struct Player {
    steps: Steps,
    link: Arc<Link>,
    exchange: Exchange,
    token_interval: Duration,
    next_token: Option<Instant>,
    /// One timer, reused: allocated only when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    sleeping: bool,
    hung: bool,
}

impl Player {
    pub(crate) fn new(steps: Steps, link: Arc<Link>, exchange: Exchange, token_interval: Duration) -> Self {
        Self {
            steps,
            link,
            exchange,
            token_interval,
            next_token: None,
            timer: None,
            sleeping: false,
            hung: false,
        }
    }

    fn sleep_until(&mut self, deadline: Instant) {
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(deadline),
            None => self.timer = Some(Box::pin(tokio::time::sleep_until(deadline))),
        }
        self.sleeping = true;
    }

    /// Tokens are due at fixed times, so that late ones catch up and rates above the timer's 1 ms are kept.
    fn tick(&mut self) {
        if self.token_interval.is_zero() {
            return;
        }
        let now = Instant::now();
        let due = self.next_token.unwrap_or(now);
        self.next_token = Some(due + self.token_interval);
        if due > now {
            self.sleep_until(due);
        }
    }

    fn broken(&mut self) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.exchange.finish(Outcome::Faulted);
        Poll::Ready(Some(Err(io::Error::other("simulated fault"))))
    }
}

impl Body for Player {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        loop {
            if this.hung {
                return Poll::Pending;
            }
            if let (true, Some(timer)) = (this.sleeping, &mut this.timer) {
                ready!(timer.as_mut().poll(cx));
                this.sleeping = false;
            }
            match this.steps.next() {
                Some(Step::Send(bytes)) => {
                    this.exchange.chunks += 1;
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Step::Tick) => this.tick(),
                Some(Step::Pause(duration)) if duration.is_zero() => {}
                Some(Step::Pause(duration)) => this.sleep_until(Instant::now() + duration),
                Some(Step::Flush) => {
                    // hyper flushes whenever the body is pending.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Step::Hang) => this.hung = true,
                Some(Step::Reset) => {
                    this.link.reset_on_close();
                    return this.broken();
                }
                Some(Step::HalfChunk(bytes)) => {
                    this.link.write_half_chunk(&bytes);
                    return this.broken();
                }
                None => {
                    this.exchange.finish(Outcome::Completed);
                    return Poll::Ready(None);
                }
            }
        }
    }
}
