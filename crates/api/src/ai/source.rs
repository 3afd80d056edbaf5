//! The engine's answer as a body, also while it is still being waited for.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::{
    engine::{Answer, Opened},
    failure::Fault,
};

/// A call to the engine that has not yet led to anything.
pub(super) type Opening = Pin<Box<dyn Future<Output = Result<Answer, Fault>> + Send>>;

/// An event stream of the engine. Dropping it cancels the request.
pub(super) enum Source {
    /// The head went out to the client before the engine's first event.
    Opening(Opening),
    /// The engine answers.
    Open {
        /// What was read while waiting for the first event, last piece first.
        early: Vec<Bytes>,
        /// The rest.
        rest: reqwest::Body,
    },
}

impl Source {
    pub(super) fn open(opened: Opened) -> Self {
        let Opened { mut early, rest } = opened;
        early.reverse();
        Self::Open { early, rest }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening(_) => "Opening",
            Self::Open { .. } => "Open",
        })
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Self::Opening(opening) = &mut *self {
            match ready!(opening.as_mut().poll(context)) {
                Ok(Answer::Stream(opened)) => *self = Self::open(opened),
                Ok(Answer::Whole { .. }) => {
                    return Poll::Ready(Some(Err(Fault::Unexpected("it is not an event stream"))));
                }
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
        }
        let Self::Open { early, rest } = &mut *self else { return Poll::Ready(None) };
        match early.pop() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Pin::new(rest).poll_frame(context).map_err(Fault::Broken),
        }
    }
}
