//! Event streams, written by hand once their answer begins.
//!
//! Hyper keeps 8 KiB to read into and 8 KiB to write from for as long as a connection lives, and goes several times through
//! its state machine for each event. A stream needs neither. So when a handler answers with an event stream, hyper's
//! connection is taken apart and this goes on with the socket: head, chunks (RFC 9112, section 7.1), end. Then the connection
//! is hyper's again. See `docs/decisions/0087-event-streams-are-written-by-hand.md`.

use std::{
    io::{self, IoSlice, Write as _},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Body as _;
use hyper::{Method, Request, Response, StatusCode, Version, header};
use runtime::Clock;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use crate::{body::ResponseBody, io::TimedIo};

/// So much is read of what a client sends ahead while its stream goes on, beside what hyper had read; more is left to the kernel.
const MAX_AHEAD: usize = 4 << 10;

/// What the request allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// An answer of unknown length can be written in chunks.
    chunks: bool,
    pub(crate) keep_alive: bool,
}

impl Asked {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let closes = |value: &header::HeaderValue| {
            let value = value.to_str().unwrap_or_default();
            value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"))
        };
        Self {
            chunks: request.version() == Version::HTTP_11 && request.method() != Method::HEAD,
            // Where a Content-Length stood beside the Transfer-Encoding the connection must be closed (RFC 9112, section 6.3). Hyper
            // has taken it away by now, so a request in chunks is the last one on its connection.
            keep_alive: !headers.contains_key(header::TRANSFER_ENCODING)
                && !headers.get_all(header::CONNECTION).iter().any(closes),
        }
    }
}

/// An answer on its way: what is being written, and the body that the rest comes from.
#[derive(Debug)]
pub(crate) struct EventStream {
    /// The answer's head and then the length of each chunk, its data, and what ends it.
    head: Vec<u8>,
    data: Bytes,
    tail: &'static [u8],
    /// So much of the three is written.
    written: usize,
    body: ResponseBody,
    ended: bool,
    pub(crate) keep_alive: bool,
}

impl EventStream {
    /// Whether the answer is one that can be taken over.
    pub(crate) fn is(response: &Response<ResponseBody>, asked: Asked) -> bool {
        let headers = response.headers();
        let is_event_stream = headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        let is_plain =
            [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE]
                .iter()
                .all(|name| !headers.contains_key(name));
        asked.chunks
            && response.status() == StatusCode::OK
            && is_event_stream
            && is_plain
            && response.body().size_hint().exact().is_none()
    }

    /// Takes the answer over.
    pub(crate) fn new(response: Response<ResponseBody>, asked: Asked) -> Self {
        let (parts, body) = response.into_parts();
        let mut head = Vec::with_capacity(1 << 10);
        head.extend_from_slice(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n");
        for (name, value) in &parts.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        if !asked.keep_alive {
            head.extend_from_slice(b"connection: close\r\n");
        }
        if !parts.headers.contains_key(header::DATE) {
            let _ = write!(
                head,
                "date: {}\r\n",
                httpdate::HttpDate::from(SystemTime::from(Clock::system().now()))
            );
        }
        head.extend_from_slice(b"\r\n");
        let (data, tail) = (Bytes::new(), &b""[..]);
        Self { head, data, tail, written: 0, body, ended: false, keep_alive: asked.keep_alive }
    }

    /// Writes until the end of the answer, or of the connection. What the client sends meanwhile is kept in `ahead`.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut TimedIo,
        ahead: &mut BytesMut,
    ) -> Poll<io::Result<()>> {
        loop {
            let silent = self.poll_body(cx)?.is_pending();
            match self.poll_write(cx, io)? {
                Poll::Ready(()) if self.ended => return Poll::Ready(Ok(())),
                Poll::Ready(()) if !silent => {}
                _ => break,
            }
        }
        poll_client(cx, io, ahead)
    }

    /// The next part of the body, as soon as the last one is written.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.data.is_empty() && !self.ended {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // There are no trailers to an event stream, and a chunk of no bytes would be the last.
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        let _ = write!(self.head, "{:x}\r\n", data.len());
                        self.data = data;
                        self.ended = self.body.is_end_stream();
                        self.tail = if self.ended { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                    }
                }
                // Without a last chunk the client knows that something is missing.
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => {
                    self.tail = b"0\r\n\r\n";
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, io: &mut TimedIo) -> Poll<io::Result<()>> {
        loop {
            let mut skip = self.written;
            let mut slices = [&self.head[..], &self.data[..], self.tail].map(|mut slice| {
                let part = skip.min(slice.len());
                skip -= part;
                slice.advance(part);
                IoSlice::new(slice)
            });
            // Those in front that are done would count as an end.
            let from = slices.iter().position(|slice| !slice.is_empty());
            let Some(slices) = from.and_then(|from| slices.get_mut(from..)) else { break };
            match ready!(Pin::new(&mut *io).poll_write_vectored(cx, slices))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        // The next lengths are short.
        if self.head.capacity() > 64 {
            self.head = Vec::with_capacity(16);
        }
        self.head.clear();
        (self.data, self.tail, self.written) = (Bytes::new(), b"", 0);
        Poll::Ready(Ok(()))
    }
}

/// Is the client still there? A client that closes its half is taken to be gone, as hyper does it.
fn poll_client(cx: &mut Context<'_>, io: &mut TimedIo, ahead: &mut BytesMut) -> Poll<io::Result<()>> {
    let mut space = [MaybeUninit::uninit(); 512];
    while ahead.len() < MAX_AHEAD {
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client has left")));
        }
        ahead.extend_from_slice(buffer.filled());
    }
    Poll::Pending
}
