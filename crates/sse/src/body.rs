//! The relay as an HTTP body.

use std::{
    convert::Infallible,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

use crate::{Event, Relay, Verdict};

/// When so much waits, it goes out before more is read.
const ENOUGH: usize = 16 << 10;
/// After the last event so much is still read, in the hope of the regular end, by which the connection can be used again.
const MAX_TAIL: usize = 64 << 10;

/// Decides what happens with a stream. Dropped with the body.
pub trait Watch<E> {
    /// A frame of so many bytes arrived. `Break` ends the stream with these last words (whole events, or nothing).
    fn frame(&mut self, length: usize) -> ControlFlow<Bytes>;

    /// A whole event arrived.
    fn event(&mut self, event: Event<'_>) -> Verdict;

    /// The source is silent, and nothing waits to be sent: is there something else to do? `between` tells whether the reader is
    /// between two events, where something can be inserted. Must arrange a wake-up, as any poll function.
    fn poll_signal(&mut self, context: &mut Context<'_>, between: bool) -> Poll<Signal>;

    /// The source ended before a last event was seen. Returns last words (whole events, or nothing).
    fn end(&mut self, end: End<E>) -> Bytes;
}

/// What a [`Watch`] wants while the source is silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// These bytes are to be inserted. Only when the reader is between two events.
    Insert(Bytes),
    /// The stream ends here, with these last words.
    End(Bytes),
}

/// How a source ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End<E> {
    /// With its regular end.
    Clean,
    /// With an error.
    Failed(E),
}

pin_project! {
    /// Forwards the events of a body to a reader, under a [`Watch`]. It never fails: errors become the watch's last words and a
    /// clean end. The source is dropped as soon as the stream has ended, and with this body at the latest; for the body of an
    /// HTTP response that is what cancels the request.
    #[derive(Debug)]
    pub struct RelayBody<B, W> {
        #[pin]
        source: Option<B>,
        relay: Relay,
        watch: W,
        tail: usize,
    }
}

impl<B, W> RelayBody<B, W> {
    /// Forwards `source`.
    pub fn new(source: B, watch: W) -> Self {
        Self { source: Some(source), relay: Relay::default(), watch, tail: 0 }
    }
}

impl<B, W> Body for RelayBody<B, W>
where
    B: Body<Data = Bytes>,
    W: Watch<B::Error>,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut this = self.project();
        let (relay, watch) = (this.relay, this.watch);
        while relay.waiting() < ENOUGH {
            let Some(source) = this.source.as_mut().as_pin_mut() else { break };
            let open = !relay.is_closed();
            let last_words = match source.poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers mean nothing in an event stream.
                    let Ok(data) = frame.into_data() else { continue };
                    match watch.frame(data.len()) {
                        ControlFlow::Continue(()) if open => {
                            relay.push(data, &mut |event| watch.event(event));
                            continue;
                        }
                        ControlFlow::Continue(()) => {
                            *this.tail += data.len();
                            if *this.tail < MAX_TAIL {
                                continue;
                            }
                            Bytes::new()
                        }
                        ControlFlow::Break(words) => words,
                    }
                }
                Poll::Ready(Some(Err(error))) if open => watch.end(End::Failed(error)),
                Poll::Ready(None) if open => {
                    relay.finish(&mut |event| watch.event(event));
                    watch.end(End::Clean)
                }
                Poll::Ready(_) => Bytes::new(),
                Poll::Pending if relay.waiting() > 0 => break,
                Poll::Pending => match watch.poll_signal(context, relay.at_boundary()) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Signal::Insert(bytes)) => {
                        relay.insert(bytes);
                        continue;
                    }
                    Poll::Ready(Signal::End(words)) => words,
                },
            };
            this.source.set(None);
            relay.abort();
            if open {
                relay.insert(last_words);
            }
        }
        Poll::Ready(relay.pop().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none() && self.relay.waiting() == 0
    }
}
