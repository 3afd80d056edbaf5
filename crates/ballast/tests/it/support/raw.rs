//! HTTP as bytes: what no well-behaved client would send.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Everything that came back on one connection.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) text: String,
    /// The server closed the connection; otherwise the patience ended.
    pub(crate) closed: bool,
}

impl Reply {
    /// The statuses of all answers in it, in their order.
    pub(crate) fn statuses(&self) -> Vec<u16> {
        // A body may end right before the next head, so a line's begin means nothing.
        let codes = self.text.split("HTTP/1.").skip(1).filter_map(|rest| rest.get(2..5));
        codes.filter_map(|code| code.parse().ok()).collect()
    }
}

/// Sends these bytes on a connection of its own, and reads until the server closes it or nothing came for a while.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8], patience: Duration) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that refuses early may close before everything is sent.
    let _ = stream.write_all(bytes).await;
    read(stream, patience).await
}

/// Reads until the server closes the connection or nothing came for a while.
pub(crate) async fn read(mut stream: TcpStream, patience: Duration) -> Reply {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 16 * 1024]);
    let closed = loop {
        match tokio::time::timeout(patience, stream.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(n)) => bytes.extend_from_slice(&piece[..n]),
            Err(_) => break false,
        }
    };
    Reply { text: String::from_utf8_lossy(&bytes).into_owned(), closed }
}
