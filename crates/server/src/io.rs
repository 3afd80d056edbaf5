//! The socket with its timers.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use config::HttpConfig;
use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// What the connection's service tells its socket: how many requests have begun, how many answers have ended.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    started: AtomicUsize,
    ended: AtomicUsize,
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
}

/// What a read is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The first byte of the next request (after so many answers).
    FirstByte(usize),
    /// The rest of a request's head.
    Head(usize),
}

pub(crate) struct TimedIo {
    stream: TcpStream,
    activity: Arc<Activity>,
    wait: Wait,
    read_timer: Pin<Box<Sleep>>,
    /// Armed while a write makes no progress.
    write_timer: Option<Pin<Box<Sleep>>>,
    header_timeout: Duration,
    keep_alive: Duration,
    write_stall_timeout: Duration,
}

impl TimedIo {
    pub(crate) fn new(stream: TcpStream, activity: Arc<Activity>, config: &HttpConfig) -> Self {
        Self {
            stream,
            activity,
            wait: Wait::FirstByte(0),
            read_timer: Box::pin(tokio::time::sleep(config.header_timeout)),
            write_timer: None,
            header_timeout: config.header_timeout,
            keep_alive: config.keep_alive,
            write_stall_timeout: config.write_stall_timeout,
        }
    }

    /// A read found nothing: is that all right?
    fn poll_read_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.activity.reader.register(cx.waker());
        let started = self.activity.started.load(Ordering::Relaxed);
        if started != self.activity.ended.load(Ordering::Relaxed) {
            // A request is under way. Hyper reads to notice when the client leaves; bodies have a timer of their own.
            return Poll::Pending;
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
        let busy = started != self.activity.ended.load(Ordering::Relaxed);
        if !busy && self.wait != Wait::Head(started) {
            self.wait = Wait::Head(started);
            self.read_timer.as_mut().reset(Instant::now() + self.header_timeout);
        }
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
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
}

impl AsyncRead for TimedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
