//! The socket with its timers.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use config::HttpConfig;
use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use crate::refusal;

/// What the connection's service tells its socket: how many requests have begun, how many answers have ended.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    started: AtomicUsize,
    ended: AtomicUsize,
    /// Part of the request's body was not taken from the socket.
    unread: AtomicBool,
    /// The client takes nothing, and what was written last waits.
    stalled: AtomicBool,
    /// The connection is to be closed as soon as nothing is being asked on it.
    evicted: AtomicBool,
    /// Wakes the read that found nothing while a request was under way: from now on it is timed.
    reader: AtomicWaker,
}

impl Activity {
    pub(crate) fn request_started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn answer_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.reader.wake();
    }

    /// Whether all of the request was taken from the socket.
    pub(crate) fn is_read(&self, whole: bool) {
        self.unread.store(!whole, Ordering::Relaxed);
    }

    /// Nothing of the request is left to be read, and nothing of earlier answers to be written.
    pub(crate) fn is_between(&self) -> bool {
        !self.unread.load(Ordering::Relaxed) && !self.stalled.load(Ordering::Relaxed)
    }

    /// Closes the connection unless a request is under way. False when one is, or when this was said before.
    pub(crate) fn evict(&self) -> bool {
        let goes = self.is_idle() && !self.evicted.swap(true, Ordering::Relaxed);
        if goes {
            self.reader.wake();
        }
        goes
    }

    /// No request is being answered.
    fn is_idle(&self) -> bool {
        self.started.load(Ordering::Relaxed) == self.ended.load(Ordering::Relaxed)
    }
}

/// What a read is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The first byte of the next request (after so many answers).
    FirstByte(usize),
    /// The rest of a request's head.
    Head(usize),
}

#[derive(Debug)]
pub(crate) struct TimedIo {
    stream: TcpStream,
    /// What was read and is still to be looked at.
    ahead: Bytes,
    activity: Arc<Activity>,
    wait: Wait,
    read_timer: Pin<Box<Sleep>>,
    /// Armed while a write makes no progress.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// What is still to be written in the place of hyper's own answer.
    replacement: Option<Bytes>,
    /// How long an ending connection goes on taking what its client still sends.
    linger: Option<Pin<Box<Sleep>>>,
    header_timeout: Duration,
    keep_alive: Duration,
    write_stall_timeout: Duration,
}

/// A socket that is closed while bytes are coming in is reset, and a reset may overtake the answer that says why. So the rest
/// is taken, and thrown away, until the client has noticed; but no longer than this.
const LINGER: Duration = Duration::from_secs(2);

impl TimedIo {
    pub(crate) fn new(stream: TcpStream, activity: Arc<Activity>, config: &HttpConfig) -> Self {
        Self {
            stream,
            ahead: Bytes::new(),
            activity,
            wait: Wait::FirstByte(0),
            read_timer: Box::pin(tokio::time::sleep(config.header_timeout)),
            write_timer: None,
            replacement: None,
            linger: None,
            header_timeout: config.header_timeout,
            keep_alive: config.keep_alive,
            write_stall_timeout: config.write_stall_timeout,
        }
    }

    /// The next reads get these bytes first, and then what was put back before and has not been read since.
    pub(crate) fn put_back(&mut self, mut ahead: BytesMut) {
        ahead.extend_from_slice(&self.ahead);
        self.ahead = ahead.freeze();
    }

    /// A read found nothing: is that all right?
    fn poll_read_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.activity.reader.register(cx.waker());
        let started = self.activity.started.load(Ordering::Relaxed);
        if !self.activity.is_idle() {
            // A request is under way. Hyper reads to notice when the client leaves; bodies have a timer of their own.
            return Poll::Pending;
        }
        if self.activity.evicted.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "had to make room")));
        }
        if matches!(self.wait, Wait::FirstByte(n) | Wait::Head(n) if n != started) {
            self.wait = Wait::FirstByte(started);
            self.read_timer.as_mut().reset(Instant::now() + self.keep_alive);
        }
        ready!(self.read_timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "timed out waiting for a request")))
    }

    /// The first byte of a head starts its timer; the following ones do not prolong it.
    fn on_bytes(&mut self) {
        let started = self.activity.started.load(Ordering::Relaxed);
        if self.activity.is_idle() && self.wait != Wait::Head(started) {
            self.wait = Wait::Head(started);
            self.read_timer.as_mut().reset(Instant::now() + self.header_timeout);
        }
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.stalled.store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let stall = self.write_stall_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        metrics::counter!("http_slow_readers_cut_total").increment(1);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "timed out writing: the client takes nothing",
        )))
    }

    /// Writes the answer of ours in the place of hyper's, and says in the end that hyper's was written.
    fn poll_replacement(&mut self, cx: &mut Context<'_>, hypers: usize) -> Poll<io::Result<usize>> {
        while let Some(mut left) = self.replacement.take().filter(|left| !left.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(cx, &left);
            if let Poll::Ready(Ok(n)) = &written {
                left.advance(*n);
            }
            self.replacement = Some(left);
            ready!(self.watch_write(cx, written))?;
        }
        Poll::Ready(Ok(hypers))
    }

    /// Hyper writes by itself only to a client whose head it could not parse.
    fn replaces(&mut self, written: &[u8]) -> bool {
        if self.replacement.is_none() && self.activity.is_idle() {
            self.replacement = refusal::instead_of(written);
            if self.replacement.is_some() {
                self.activity.is_read(false);
            }
        }
        self.replacement.is_some()
    }
}

impl AsyncRead for TimedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(count));
            self.on_bytes();
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > before {
                    self.on_bytes();
                }
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_read_timer(cx),
        }
    }
}

impl AsyncWrite for TimedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(buf) {
            return self.poll_replacement(cx, buf.len());
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs
            && self.replaces(only)
        {
            return self.poll_replacement(cx, only.len());
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !self.activity.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let mut rest = [0; 8 * 1024];
        loop {
            let mut rest = ReadBuf::new(&mut rest);
            match Pin::new(&mut self.stream).poll_read(cx, &mut rest) {
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {}
                // The client has closed too, or is gone.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        let timer = self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        timer.as_mut().poll(cx).map(Ok)
    }
}
