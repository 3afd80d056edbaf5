//! The body of an answer, read from the socket by whoever wants it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use tokio_util::io::poll_read_buf;

use super::{Pool, chunked::Chunked, connection::Connection, head::Head};

/// A read asks for so much at least, and for twice as much as the last one when that was filled.
pub(super) const LEAST: usize = 2 << 10;
const MOST: usize = 32 << 10;

/// Its connection is closed with it, or kept for the next request once everything was read.
#[derive(Debug)]
pub(crate) struct Body {
    connection: Option<Connection>,
    left: Left,
    /// Asked for by the next read.
    next: usize,
    keep_alive: bool,
    pool: Arc<Pool>,
}

/// What is still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    Bytes(u64),
    Chunks(Chunked),
    /// Everything up to the connection's end.
    UntilClose,
}

impl Left {
    fn is_nothing(&self) -> bool {
        match self {
            Self::Bytes(left) => *left == 0,
            Self::Chunks(chunked) => chunked.is_over(),
            Self::UntilClose => false,
        }
    }

    /// Takes what arrived. See [`Chunked::decode`].
    fn decode(&mut self, bytes: &mut [u8]) -> io::Result<(usize, usize)> {
        match self {
            Self::Bytes(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                Ok((count, count))
            }
            Self::Chunks(chunked) => chunked.decode(bytes),
            Self::UntilClose => Ok((bytes.len(), bytes.len())),
        }
    }
}

impl Body {
    pub(super) fn new(connection: Connection, head: &Head, pool: Arc<Pool>) -> Self {
        Self {
            connection: Some(connection),
            left: head.body.clone(),
            next: LEAST,
            keep_alive: head.keep_alive,
            pool,
        }
    }

    /// The next bytes of the body; empty at its end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if let Some(connection) = &mut self.connection {
            connection.write_rest(cx);
        }
        loop {
            let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(Bytes::new())) };
            let buffer = &mut connection.buffer;
            if !buffer.is_empty() || self.left.is_nothing() {
                let (data, seen) = self.left.decode(buffer)?;
                let bytes = buffer.split_to(data).freeze();
                buffer.advance(seen - data);
                if self.left.is_nothing() {
                    self.end();
                }
                if !bytes.is_empty() {
                    return Poll::Ready(Ok(bytes));
                }
                continue;
            }
            if connection.socket.poll_readable(cx)?.is_ready() {
                // Not before there is something to be read: by then what was read last has mostly been written, and its memory can
                // be used again.
                buffer.reserve(self.next);
                let space = buffer.capacity();
                match poll_read_buf(Pin::new(&mut connection.socket), cx, buffer)? {
                    Poll::Pending => {}
                    Poll::Ready(count) => {
                        match count {
                            0 if matches!(self.left, Left::UntilClose) => self.connection = None,
                            0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                            count if count == space => self.next = (self.next * 2).min(MOST),
                            _ => {}
                        }
                        continue;
                    }
                }
            }
            // Silent. What a burst has needed is not kept.
            if self.next > LEAST || buffer.capacity() > 2 * LEAST {
                *buffer = BytesMut::new();
                self.next = LEAST;
            }
            return Poll::Pending;
        }
    }

    /// All was read.
    fn end(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && self.keep_alive
            && connection.is_written()
            && connection.buffer.is_empty()
        {
            connection.buffer = BytesMut::new();
            self.pool.put(connection);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let data = ready!(self.poll_data(cx)).inspect_err(|_| self.connection = None)?;
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }
}
