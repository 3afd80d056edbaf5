//! The client against real sockets: where it goes, and where it does not.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use config::Environment;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use webhooks::{Client, Rules, Undelivered};

/// Answers with its list, one set of addresses after the other, and then the last one for ever.
struct Scripted {
    answers: Vec<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Scripted {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let answers = answers.iter().map(|set| set.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
        Arc::new(Self { answers, asked: AtomicUsize::new(0) })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Resolve for Scripted {
    fn resolve(&self, _: Name) -> Resolving {
        let at = self.asked.fetch_add(1, Ordering::SeqCst).min(self.answers.len() - 1);
        let found: Vec<SocketAddr> = self.answers[at].iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        Box::pin(async move { Ok(Box::new(found.into_iter()) as Addrs) })
    }
}

/// A server that gives one answer to everybody and counts its connections.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut head = [0; 4_096];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    // An answer without an end: more comes for as long as it is taken.
                    while answer.contains("chunked") && stream.write_all(b"5\r\nxxxxx\r\n").await.is_ok() {}
                });
            }
        });
        Self { port, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn client(environment: Environment, resolver: Arc<Scripted>) -> Client {
    runtime::install_crypto_provider();
    Client::with_resolver(Rules::of(environment), resolver).unwrap()
}

async fn post(client: &Client, url: &str) -> Result<u16, Undelivered> {
    let headers = [
        ("webhook-id", "1".to_owned()),
        ("webhook-timestamp", "1".to_owned()),
        ("webhook-signature", "v1,".to_owned()),
    ];
    client.post(url, headers, "{}".to_owned()).await
}

#[tokio::test]
async fn a_name_that_leads_inside_is_refused_before_there_is_a_connection() {
    let server = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()).await;
    for inside in [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.7",
        "64:ff9b::7f00:1",
        "fd12::1",
    ] {
        let client = client(Environment::Production, Scripted::new(&[&[inside]]));
        let refused = post(&client, &format!("https://hooks.example.com:{}/", server.port)).await;
        assert!(matches!(refused, Err(Undelivered::Refused(_))), "{inside}: {refused:?}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_name_that_was_public_when_it_was_looked_at_and_is_private_when_it_is_used_is_refused() {
    let server = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()).await;
    let resolver = Scripted::new(&[&["93.184.215.14"], &["127.0.0.1"]]);
    // Somebody looks, and finds a public address.
    let first = resolver.resolve("hooks.example.com".parse().unwrap()).await.unwrap().next().unwrap();
    assert!(webhooks::is_public(first.ip()));
    let client = client(Environment::Production, resolver.clone());
    for again in 0..2 {
        let refused = post(&client, &format!("https://hooks.example.com:{}/", server.port)).await;
        assert!(matches!(refused, Err(Undelivered::Refused(_))), "{refused:?}");
        assert_eq!(resolver.asked(), 2 + again, "asked anew for each connection");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn of_several_addresses_only_the_allowed_ones_are_tried() {
    let server = Server::start("HTTP/1.1 204 No Content\r\n\r\n".into()).await;
    let resolver = Scripted::new(&[&["169.254.169.254", "10.0.0.1", "127.0.0.1"]]);
    let client = client(Environment::Development, resolver);
    assert_eq!(post(&client, &format!("http://hooks.example.com:{}/", server.port)).await, Ok(204));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn no_redirect_is_followed_to_metadata_or_anywhere() {
    let inside = Server::start("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret".into()).await;
    let resolver = Scripted::new(&[&["127.0.0.1"]]);
    for (status, target) in [
        (301, "http://169.254.169.254/latest/meta-data/".to_owned()),
        (302, format!("http://127.0.0.1:{}/", inside.port)),
        (307, format!("http://hooks.example.com:{}/", inside.port)),
        (308, "/elsewhere".to_owned()),
    ] {
        let answer = format!("HTTP/1.1 {status} Moved\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n");
        let server = Server::start(answer).await;
        let client = client(Environment::Development, resolver.clone());
        assert_eq!(post(&client, &format!("http://hooks.example.com:{}/", server.port)).await, Ok(status));
        assert_eq!(server.connections(), 1);
    }
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_read() {
    let server = Server::start("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into()).await;
    let client = client(Environment::Development, Scripted::new(&[&["127.0.0.1"]]));
    let url = format!("http://hooks.example.com:{}/", server.port);
    let posted = post(&client, &url);
    let status = tokio::time::timeout(Duration::from_secs(5), posted).await.expect("ends with the head");
    assert_eq!(status, Ok(200));
}

#[tokio::test]
async fn what_goes_wrong_is_told_without_saying_what_is_there() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let garbage = Server::start("this is no HTTP\r\n\r\n".into()).await;
    let client = client(Environment::Development, Scripted::new(&[&["127.0.0.1"]]));
    assert_eq!(
        post(&client, &format!("http://hooks.example.com:{nobody}/")).await,
        Err(Undelivered::NoConnection)
    );
    let broken = post(&client, &format!("http://hooks.example.com:{}/", garbage.port)).await;
    assert_eq!(broken, Err(Undelivered::Broken));
    // TLS towards something that does not speak it.
    let no_tls = post(&client, &format!("https://hooks.example.com:{}/", garbage.port)).await;
    assert_eq!(no_tls, Err(Undelivered::NoConnection));
}
