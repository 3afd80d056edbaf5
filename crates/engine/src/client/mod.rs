//! HTTP/1.1 to one engine.
//!
//! A client library has a task for each connection and passes every chunk of an answer from it to the reader: two wake-ups for
//! an event, and 16 KiB of buffers for a stream that says little. Here whoever reads an answer reads the socket, takes all
//! chunks that are there at once, and keeps little memory while there are none. See
//! `docs/decisions/0088-the-engines-client-is-our-own.md`.
//!
//! What it has: keep-alive with a pool, TLS with the platform's roots, answers by length, in chunks or until the connection's
//! end (RFC 9112, section 6.3). What it has not, because an engine needs none of it: redirects, cookies, proxies, compression,
//! trailers, HTTP/2.

mod answer;
mod chunked;
mod connection;
mod head;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Method, header};
use tokio::time::Instant;
use url::{Position, Url};

pub(crate) use answer::Body;
use connection::{Connection, Target};
pub(crate) use head::Head;

/// Below uvicorn's and Node's 5 s: a connection that the engine is about to close is not used any more.
const MAX_IDLE_TIME: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 256;

/// A client of one engine.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
    connect_timeout: Duration,
    pool: Arc<Pool>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Error {
    /// There was no connection; nothing was sent.
    Connect(io::Error),
    /// The connection broke, or what came is no HTTP.
    Exchange(io::Error),
}

/// Connections on which nothing is being asked, the one that was used last at the end.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<(Instant, Connection)>>);

impl Client {
    /// # Errors
    /// When the address has no host, or TLS has no roots to trust.
    pub(crate) fn new(base: &Url, connect_timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self { target: Target::new(base)?, connect_timeout, pool: Arc::default() })
    }

    /// Sends a request, and waits for the answer's head. Dropped in the middle, the connection is closed.
    pub(crate) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(Head, Body), Error> {
        let mut connection = match self.pool.take() {
            Some(connection) => connection,
            None => self.target.connect(self.connect_timeout).await.map_err(Error::Connect)?,
        };
        let request = Bytes::from(self.request_head(method, url, headers, body.len())).chain(body);
        let head = connection.exchange(request).await.map_err(Error::Exchange)?;
        let body = Body::new(connection, &head, self.pool.clone());
        Ok((head, body))
    }

    pub(crate) fn close_idle(&self) {
        drop(self.pool.fresh());
    }

    fn request_head(&self, method: &Method, url: &Url, headers: &HeaderMap, length: usize) -> Vec<u8> {
        let mut head = Vec::with_capacity(1 << 10);
        let mut write = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
        let path = url[Position::BeforePath..Position::AfterQuery].as_bytes();
        write(&[
            method.as_str().as_bytes(),
            b" ",
            path,
            b" HTTP/1.1\r\nhost: ",
            self.target.authority(),
            b"\r\n",
        ]);
        for (name, value) in headers {
            write(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        if length > 0 {
            write(&[
                header::CONTENT_LENGTH.as_str().as_bytes(),
                b": ",
                length.to_string().as_bytes(),
                b"\r\n",
            ]);
        }
        write(&[b"\r\n"]);
        head
    }
}

impl Pool {
    fn take(&self) -> Option<Connection> {
        let mut idle = self.fresh();
        loop {
            let (_, mut connection) = idle.pop()?;
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    fn put(&self, connection: Connection) {
        let mut idle = self.fresh();
        if idle.len() < MAX_IDLE {
            idle.push((Instant::now(), connection));
        }
    }

    /// Without those whose time is over.
    fn fresh(&self) -> MutexGuard<'_, Vec<(Instant, Connection)>> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let over = idle.iter().take_while(|(since, _)| now.duration_since(*since) >= MAX_IDLE_TIME).count();
        idle.drain(..over);
        idle
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn listen() -> (TcpListener, Url) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/models", listener.local_addr().unwrap());
        (listener, url.parse().unwrap())
    }

    fn client(url: &Url) -> Client {
        Client::new(url, Duration::from_secs(2)).unwrap()
    }

    async fn ask(client: &Client, url: &Url, body: Bytes) -> Result<(u16, Bytes), Error> {
        let (head, body) = client.send(&Method::POST, url, &HeaderMap::new(), body).await?;
        let body = body.collect().await.map_err(Error::Exchange)?.to_bytes();
        Ok((head.status.as_u16(), body))
    }

    async fn head_of(stream: &mut TcpStream) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(char::from(stream.read_u8().await.unwrap()));
        }
        head
    }

    #[tokio::test]
    async fn answers_are_read_to_their_end_wherever_it_is_and_connections_used_again() {
        let (listener, url) = listen().await;
        let client = client(&url);
        let engine = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in [
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1\r\ny\r\n0\r\n\r\n",
                "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody",
            ] {
                let head = head_of(&mut stream).await;
                assert!(head.starts_with("POST /v1/models HTTP/1.1\r\nhost: 127.0.0.1:"), "{head}");
                for byte in answer.bytes() {
                    stream.write_u8(byte).await.unwrap();
                }
            }
            // That one said that it was the last.
            let (mut stream, _) = listener.accept().await.unwrap();
            head_of(&mut stream).await;
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nbody").await.unwrap();
        };
        let asking = async {
            for status in [200, 200, 404, 200] {
                let answer = ask(&client, &url, Bytes::new()).await.unwrap();
                assert_eq!(answer, (status, Bytes::from_static(b"body")));
            }
        };
        tokio::join!(engine, asking);
    }

    #[tokio::test]
    async fn a_question_is_not_held_back_for_an_acknowledgement() {
        let (_listener, url) = listen().await;
        let connection = client(&url).target.connect(Duration::from_secs(2)).await.unwrap();
        assert!(connection.is_undelayed());
    }

    #[tokio::test]
    async fn a_connection_that_the_engine_has_closed_is_not_used_again() {
        let (listener, url) = listen().await;
        let client = client(&url);
        for _ in 0..20 {
            let engine = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                head_of(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            };
            let (answer, ()) = tokio::join!(ask(&client, &url, Bytes::new()), engine);
            assert_eq!(answer.unwrap().0, 200);
        }
    }

    #[tokio::test]
    async fn an_answer_that_begins_before_the_request_has_ended_does_not_stop_it() {
        let (listener, url) = listen().await;
        let client = client(&url);
        let long = Bytes::from(vec![b'x'; 8 << 20]);
        let engine = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            head_of(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await.unwrap();
            let mut request = vec![0; 8 << 20];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"ok").await.unwrap();
            // And the connection can be used again.
            head_of(&mut stream).await;
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
        };
        let asking = async {
            assert_eq!(ask(&client, &url, long).await.unwrap(), (200, Bytes::from_static(b"ok")));
            assert_eq!(ask(&client, &url, Bytes::new()).await.unwrap().0, 413);
        };
        tokio::join!(engine, asking);
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error_and_so_is_none() {
        let (listener, url) = listen().await;
        let client = client(&url);
        for (answer, fine) in [
            ("", false),
            ("HTTP/1.1 200 OK\r\nContent-Le", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", false),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\nbody", true),
        ] {
            let engine = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                head_of(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (result, ()) = tokio::join!(ask(&client, &url, Bytes::new()), engine);
            assert!(
                if fine { result.is_ok() } else { matches!(result, Err(Error::Exchange(_))) },
                "{answer}: {result:?}"
            );
        }
        drop(listener);
        assert!(matches!(ask(&client, &url, Bytes::new()).await, Err(Error::Connect(_))));
    }
}
