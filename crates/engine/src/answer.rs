//! What comes back.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use sse::{MAX_EVENT, Relay, Verdict};

use crate::{EngineError, Fault, client::Body};

/// So many pieces of an unfinished first event are kept apart: a piece costs more than its bytes when those are few.
const MANY_PIECES: usize = 256;

/// A successful answer.
#[derive(Debug)]
pub enum Answer {
    /// An event stream that has begun.
    Stream(EventStream),
    /// A document.
    Whole {
        /// Its type.
        content_type: HeaderValue,
        /// All of it.
        body: Bytes,
    },
}

/// An event stream that has begun: its bytes, as a body, from the first one on. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventStream {
    /// What was read while waiting for the first event, last piece first.
    early: Vec<Bytes>,
    rest: Body,
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match self.early.pop() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Pin::new(&mut self.rest).poll_frame(context).map_err(Fault::Broken),
        }
    }
}

pub(crate) async fn read(mut body: Body, limit: usize) -> Result<Bytes, Fault> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Fault::Broken)?.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Err(Fault::Unexpected("it is too large"));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads until there is an event with data. Comments are none: engines send them while they load a model.
pub(crate) async fn first_event(mut rest: Body) -> Result<EventStream, Fault> {
    let mut early = Vec::new();
    let mut length = 0;
    let mut probe = Relay::default();
    let mut first = First::default();
    loop {
        let frame = rest.frame().await;
        let ended = frame.is_none();
        if let Some(frame) = frame {
            let Ok(data) = frame.map_err(Fault::Broken)?.into_data() else { continue };
            length += data.len();
            probe.push(data.clone(), &mut |event| first.look(&event));
            early.push(data);
            while probe.pop().is_some() {}
            if early.len() > MANY_PIECES {
                early = vec![early.concat().into()];
            }
        } else {
            probe.finish(&mut |event| first.look(&event));
        }
        match first {
            First::Error(error) => return Err(Fault::Status(error)),
            First::None if ended => return Err(Fault::Unexpected("it has no events")),
            // One event longer than anything that is held back: it has begun.
            First::None if length <= MAX_EVENT => {}
            First::Event | First::None => {
                early.reverse();
                return Ok(EventStream { early, rest });
            }
        }
    }
}

/// What a stream begins with.
#[derive(Debug, Default)]
enum First {
    #[default]
    None,
    Event,
    /// An error in place of an answer: as good as an error status.
    Error(Box<EngineError>),
}

impl First {
    fn look(&mut self, event: &sse::Event<'_>) -> Verdict {
        if let (Self::None, Some(data)) = (&self, event.data())
            && !data.is_empty()
        {
            *self = EngineError::from_event(&data).map_or(Self::Event, |error| Self::Error(Box::new(error)));
        }
        Verdict::Keep
    }
}
