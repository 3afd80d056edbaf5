//! The socket under hyper, shared so that a fault can reach it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// One connection, as the faults see it. The socket closes when hyper's side, the service and the body are all gone.
#[derive(Debug)]
pub(crate) struct Link {
    socket: TcpStream,
    /// Milliseconds per byte of the next response head; 0: no drip.
    drip_ms: AtomicU32,
}

impl Link {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, drip_ms: AtomicU32::new(0) }
    }

    /// Closing sends RST instead of FIN (`SO_LINGER` 0, socket(7)).
    pub(crate) fn reset_on_close(&self) {
        // Fails only on a socket that is already gone.
        let _ = self.socket.set_zero_linger();
    }

    /// Announces a chunk and writes half of it, past hyper: whatever was handed to hyper must be flushed before.
    pub(crate) fn write_half_chunk(&self, bytes: &[u8]) {
        let mut torn = format!("{:x}\r\n", bytes.len()).into_bytes();
        torn.extend_from_slice(&bytes[..bytes.len() / 2]);
        // Short bytes into a flushed socket; when its buffer is full, the stream is torn all the same.
        let _ = self.socket.try_write(&torn);
    }

    /// Writes the next response head one byte at a time.
    pub(crate) fn drip_head(&self, interval: Duration) {
        let millis = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        self.drip_ms.store(millis.max(1), Ordering::Relaxed);
    }
}

/// hyper's side of the connection.
#[derive(Debug)]
pub(crate) struct Wire {
    link: Arc<Link>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The last four bytes of a dripping head, to see its end.
    tail: [u8; 4],
}

impl Wire {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, timer: None, tail: [0; 4] }
    }

    fn poll_drip(&mut self, cx: &mut Context<'_>, byte: u8, millis: u32) -> Poll<io::Result<usize>> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_millis(u64::from(millis)))));
        ready!(timer.as_mut().poll(cx));
        let written = ready!(self.poll_write_plain(cx, &[byte]))?;
        self.timer = None;
        self.tail = [self.tail[1], self.tail[2], self.tail[3], byte];
        if self.tail == *b"\r\n\r\n" {
            self.link.drip_ms.store(0, Ordering::Relaxed);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_plain(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.link.socket.poll_write_ready(cx))?;
            match self.link.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.link.socket.poll_read_ready(cx))?;
            match self.link.socket.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match (self.link.drip_ms.load(Ordering::Relaxed), bytes.first()) {
            (1.., Some(first)) => {
                let (first, millis) = (*first, self.link.drip_ms.load(Ordering::Relaxed));
                self.poll_drip(cx, first, millis)
            }
            _ => self.poll_write_plain(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing to do: the socket closes when the connection is dropped, which follows at once.
        Poll::Ready(Ok(()))
    }
}
