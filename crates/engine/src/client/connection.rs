//! A connection to an engine, with or without TLS.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::Context as _;
use bytes::{Buf, Bytes, BytesMut, buf::Chain};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use rustls_platform_verifier::ConfigVerifierExt as _;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tokio_util::io::{poll_read_buf, poll_write_buf};
use url::{Host, Position, Url};

use super::{
    answer::LEAST,
    head::{Head, invalid},
};

/// An idle connection is asked after so long whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Before the next address is tried beside the one that has not answered.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Where an engine is.
#[derive(Debug)]
pub(super) struct Target {
    /// Its name and port, as `Host` says them.
    authority: Box<str>,
    host: Host,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// A connection, and what was read of it and not yet looked at.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) buffer: BytesMut,
    /// What is still to be sent of the last request.
    rest: Option<Chain<Bytes, Bytes>>,
}

#[derive(Debug)]
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Target {
    pub(super) fn new(url: &Url) -> anyhow::Result<Self> {
        let host = url.host().context("the engine's URL has no host")?.to_owned();
        let tls = if url.scheme() == "https" {
            let mut config = ClientConfig::with_platform_verifier().context("TLS has no roots to trust")?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            let name = match &host {
                Host::Domain(name) => ServerName::try_from(name.clone())?,
                Host::Ipv4(address) => ServerName::from(IpAddr::from(*address)),
                Host::Ipv6(address) => ServerName::from(IpAddr::from(*address)),
            };
            Some((Arc::new(config), name))
        } else {
            None
        };
        let port = url.port_or_known_default().context("the engine's URL has no port")?;
        Ok(Self { authority: url[Position::BeforeHost..Position::AfterPort].into(), host, port, tls })
    }

    pub(super) fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    /// Connects within this time.
    pub(super) async fn connect(&self, limit: Duration) -> io::Result<Connection> {
        let socket = timeout(limit, async {
            let stream = self.connect_tcp().await?;
            stream.set_nodelay(true)?;
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
            Ok(match &self.tls {
                None => Socket::Plain(stream),
                Some((config, name)) => {
                    let connector = TlsConnector::from(config.clone());
                    Socket::Tls(Box::new(connector.connect(name.clone(), stream).await?))
                }
            })
        });
        let too_late = || io::Error::new(io::ErrorKind::TimedOut, "the engine took too long to connect");
        let socket = socket.await.unwrap_or_else(|_| Err(too_late()))?;
        Ok(Connection { socket, buffer: BytesMut::new(), rest: None })
    }

    /// To the address that answers first: the next one is tried when one has failed, or has not answered for a while
    /// (RFC 8305, section 5).
    async fn connect_tcp(&self) -> io::Result<TcpStream> {
        let mut addresses = self.addresses().await?.into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut error = io::Error::new(io::ErrorKind::NotFound, "the engine's name has no address");
        loop {
            if let Some(address) = addresses.next() {
                attempts.push(TcpStream::connect(address));
            } else if attempts.is_empty() {
                return Err(error);
            }
            tokio::select! {
                Some(attempt) = attempts.next() => match attempt {
                    Ok(stream) => return Ok(stream),
                    Err(failed) => error = failed,
                },
                () = tokio::time::sleep(ATTEMPT_DELAY), if addresses.len() > 0 => {}
            }
        }
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(match &self.host {
            Host::Domain(name) => lookup_host((name.as_str(), self.port)).await?.collect(),
            Host::Ipv4(address) => vec![(*address, self.port).into()],
            Host::Ipv6(address) => vec![(*address, self.port).into()],
        })
    }
}

impl Connection {
    /// Sends a request, and reads the head of its answer, which may come before the request has been sent. Then the rest is sent
    /// while the answer is read.
    pub(super) async fn exchange(&mut self, request: Chain<Bytes, Bytes>) -> io::Result<Head> {
        let mut broken = None;
        self.rest = Some(request);
        poll_fn(|cx| {
            // It may have answered before it hung up.
            if broken.is_none()
                && let Poll::Ready(Err(error)) = self.poll_write(cx)
            {
                broken = Some(error);
            }
            self.poll_head(cx).map_err(|error| broken.take().unwrap_or(error))
        })
        .await
    }

    /// Goes on sending the request. That this is no longer possible is not an answer's fault; its connection is not used again.
    pub(super) fn write_rest(&mut self, cx: &mut Context<'_>) {
        let _ = self.poll_write(cx);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(Ok(())) };
        while rest.has_remaining() {
            if ready!(poll_write_buf(Pin::new(&mut self.socket), cx, rest))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.rest = None;
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Head>> {
        loop {
            if !self.buffer.is_empty()
                && let Some((head, length)) = Head::parse(&self.buffer)?
            {
                self.buffer.advance(length);
                match head.status.as_u16() {
                    101 => return Poll::Ready(Err(invalid("the engine speaks another protocol"))),
                    100..200 => continue,
                    _ => return Poll::Ready(Ok(head)),
                }
            }
            self.buffer.reserve(LEAST);
            if ready!(poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.buffer))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// The last request was sent to its end.
    pub(super) fn is_written(&self) -> bool {
        self.rest.is_none()
    }

    /// Nothing has come since the last answer, not even the end. The kernel is asked, because what tokio knows may be old.
    pub(super) fn is_quiet(&mut self) -> bool {
        match SockRef::from(self.socket.tcp()).peek(&mut [MaybeUninit::uninit()]) {
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            Ok(0) => false,
            Ok(_) => self.socket.is_tls() && self.has_no_data(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_undelayed(&self) -> bool {
        self.socket.tcp().nodelay().expect("an open socket has options")
    }

    /// What came was TLS's own business, such as a ticket for a later session.
    fn has_no_data(&mut self) -> bool {
        self.buffer.reserve(1);
        let read = poll_fn(|cx| poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.buffer));
        read.now_or_never().is_none()
    }
}

impl Socket {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether a read would find something; with TLS only the read itself can tell.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_read_ready(cx),
            Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, to),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, to),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, from),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, from),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, from),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, from),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
