//! Bodies that keep the connection's books: a request body that may not pause for long, and an answer that says when it ends.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::io::Activity;

/// Who sends less than this for long is no slow client but one that wants to be waited for. Bytes per second.
const LEAST_RATE: u64 = 1_024;

/// A request's body. A pause longer than the timeout is an error of kind [`io::ErrorKind::TimedOut`], and so is a body that is
/// not there after the timeout and one more second for each KiB that has come (as `mod_reqtimeout` of Apache does it): a byte
/// now and then must not hold a request for ever.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    activity: Arc<Activity>,
    timeout: Duration,
    /// From the first time that somebody waited for it.
    started: Option<Instant>,
    received: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, timeout: Duration, activity: Arc<Activity>) -> Self {
        activity.is_read(inner.is_end_stream());
        Self { inner, activity, timeout, started: None, received: 0, timer: None }
    }

    /// When to give up waiting for what comes next.
    fn deadline(&mut self) -> Instant {
        let now = Instant::now();
        let whole = *self.started.get_or_insert(now) + self.timeout;
        (now + self.timeout).min(whole + Duration::from_millis(self.received * 1_000 / LEAST_RATE))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        if matches!(frame, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.activity.is_read(true);
        }
        let deadline = self.deadline();
        if let Poll::Ready(frame) = frame {
            // The next wait is timed anew.
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(deadline);
            }
            return Poll::Ready(frame.map(|f| f.map_err(Into::into)));
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(
            io::Error::new(io::ErrorKind::TimedOut, "the request body stopped coming").into()
        )))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project_lite::pin_project! {
    /// An answer's body; tells the socket when it is over, however it ends.
    #[derive(Debug)]
    pub struct ResponseBody {
        #[pin]
        inner: axum::body::Body,
        busy: Busy,
    }
}

#[derive(Debug)]
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.answer_ended();
    }
}

impl ResponseBody {
    pub(crate) fn new(inner: axum::body::Body, activity: Arc<Activity>) -> Self {
        Self { inner, busy: Busy(activity) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
