//! An engine that sends exactly the bytes it is told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Answers every request with the same pieces, each in a chunk of its own and after a pause.
pub(crate) struct Scripted {
    address: SocketAddr,
    /// When each piece was sent.
    sent: Arc<Mutex<Vec<Instant>>>,
    _server: JoinSet<()>,
}

impl Scripted {
    pub(crate) async fn start(pieces: Vec<Vec<u8>>, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::<Mutex<Vec<Instant>>>::default();
        let noted = sent.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(answer(stream, pieces.clone(), pause, noted.clone()));
            }
        });
        Self { address, sent, _server: server }
    }

    /// When each piece was sent so far.
    pub(crate) fn sent(&self) -> Vec<Instant> {
        self.sent.lock().unwrap().clone()
    }

    /// Answers every request with this status and JSON document.
    pub(super) async fn refusing(status: &str, document: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{document}",
            document.len()
        );
        let mut server = JoinSet::new();
        server.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if read_request(&mut stream).await {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        Self { address, sent: Arc::default(), _server: server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

/// Answers every request with the same bytes, cut in two: each time one byte further on.
pub(super) struct Cutting(Scripted);

impl Cutting {
    pub(super) async fn start(bytes: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (first, second) = bytes.split_at(1 + number % (bytes.len() - 1));
                let pieces = vec![first.to_vec(), second.to_vec()];
                connections.spawn(answer(stream, pieces, Duration::from_millis(5), Arc::default()));
            }
        });
        Self(Scripted { address, sent: Arc::default(), _server: server })
    }

    pub(super) fn url(&self) -> String {
        self.0.url()
    }
}

/// False when the client left.
async fn read_request(stream: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return false;
        }
    }
    true
}

async fn answer(
    mut stream: TcpStream,
    pieces: Vec<Vec<u8>>,
    pause: Duration,
    sent: Arc<Mutex<Vec<Instant>>>,
) {
    stream.set_nodelay(true).unwrap();
    if !read_request(&mut stream).await {
        return;
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    for piece in pieces {
        tokio::time::sleep(pause).await;
        sent.lock().unwrap().push(Instant::now());
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
        if stream.write_all(&chunk).await.is_err() {
            return;
        }
    }
    let _ = stream.write_all(b"0\r\n\r\n").await;
}

fn is_whole(request: &[u8]) -> bool {
    let Some(head) = request.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    request.len() >= head + 4 + length.unwrap_or(0)
}
