//! The fault proxy does to a connection what it says.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use test_support::{FaultProxy, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Long enough to be sure that nothing comes.
const SILENCE: Duration = Duration::from_millis(300);

/// A server that sends back what it gets.
async fn echo(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

async fn say(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    Ok(back)
}

struct Setup {
    proxy: FaultProxy,
    _server: JoinSet<()>,
}

async fn setup() -> (Setup, TcpStream) {
    let mut server = JoinSet::new();
    let proxy = FaultProxy::start(echo(&mut server).await);
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(say(&mut stream, b"hello").await.unwrap(), b"hello");
    (Setup { proxy, _server: server }, stream)
}

#[tokio::test]
async fn pass_forwards_and_counts() {
    let (setup, stream) = setup().await;
    assert_eq!((setup.proxy.accepted(), setup.proxy.open()), (1, 1));
    drop(stream);
    timeout(Duration::from_secs(10), async {
        while setup.proxy.open() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn refuse_ends_what_exists_and_refuses_what_comes_until_switched_back() {
    let (setup, mut stream) = setup().await;
    setup.proxy.set(Mode::Refuse);
    assert_eq!(say(&mut stream, b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let refused = TcpStream::connect(setup.proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    setup.proxy.set(Mode::Pass);
    let mut again = loop {
        match TcpStream::connect(setup.proxy.address()).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(say(&mut again, b"back").await.unwrap(), b"back");
}

#[tokio::test]
async fn blackhole_holds_bytes_until_it_heals() {
    let (setup, mut stream) = setup().await;
    setup.proxy.set(Mode::Blackhole);
    stream.write_all(b"held").await.unwrap();
    let mut back = [0; 4];
    assert!(timeout(SILENCE, stream.read_exact(&mut back)).await.is_err());
    let mut fresh = TcpStream::connect(setup.proxy.address()).await.unwrap();
    assert!(timeout(SILENCE, say(&mut fresh, b"new")).await.is_err());
    setup.proxy.set(Mode::Pass);
    timeout(Duration::from_secs(10), stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"held");
}

#[tokio::test]
async fn reset_accepts_and_resets() {
    let (setup, mut stream) = setup().await;
    setup.proxy.set(Mode::Reset);
    assert_eq!(say(&mut stream, b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut fresh = TcpStream::connect(setup.proxy.address()).await.unwrap();
    let mut byte = [0];
    assert_eq!(fresh.read(&mut byte).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn latency_delays_both_directions() {
    let (setup, mut stream) = setup().await;
    setup.proxy.set(Mode::Latency(Duration::from_millis(100)));
    let started = Instant::now();
    say(&mut stream, b"slow").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
}

#[tokio::test]
async fn bandwidth_limits_the_rate() {
    let (setup, mut stream) = setup().await;
    setup.proxy.set(Mode::Bandwidth(20_000));
    let started = Instant::now();
    say(&mut stream, &[7; 10_000]).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
}

#[tokio::test]
async fn cut_after_delivers_exactly_that_many_bytes_and_resets() {
    let (setup, mut stream) = setup().await;
    setup.proxy.set(Mode::CutAfter(10));
    stream.write_all(&[1; 100]).await.unwrap();
    let mut got = 0;
    let mut buffer = [0; 64];
    let error = loop {
        match stream.read(&mut buffer).await {
            Ok(0) => panic!("closed in order"),
            Ok(n) => got += n,
            Err(error) => break error,
        }
    };
    assert_eq!((got, error.kind()), (10, ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_url_is_rewritten_to_lead_through_the_proxy() {
    let (proxy, url) = FaultProxy::in_front_of("postgres://me:secret@127.0.0.1:6543/base?a=b").await;
    assert_eq!(url, format!("postgres://me:secret@{}/base?a=b", proxy.address()));
}
