//! The engine's answer as a body, also while it is still being waited for.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use engine::{Answer, EventStream, Fault};
use http_body::{Body, Frame};

use super::failure::Stop;

/// A call to the engine that has not yet led to anything.
pub(super) type Opening = Pin<Box<dyn Future<Output = Result<Answer, Fault>> + Send>>;

/// An event stream of the engine. Dropping it cancels the request.
pub(super) enum Source {
    /// The head went out to the client before the engine's first event.
    Opening(Opening),
    /// The engine answers.
    Open(EventStream),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening(_) => "Opening",
            Self::Open(_) => "Open",
        })
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = Stop;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Stop>>> {
        if let Self::Opening(opening) = &mut *self {
            match ready!(opening.as_mut().poll(context)) {
                Ok(Answer::Stream(stream)) => *self = Self::Open(stream),
                Ok(Answer::Whole { .. }) => {
                    return Poll::Ready(Some(Err(Fault::Unexpected("it is not an event stream").into())));
                }
                Err(fault) => return Poll::Ready(Some(Err(fault.into()))),
            }
        }
        let Self::Open(stream) = &mut *self else { return Poll::Ready(None) };
        Pin::new(stream).poll_frame(context).map_err(Stop::Engine)
    }
}
