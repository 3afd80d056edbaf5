//! More clients than anybody has, on the real binary.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::support::{Deployment, eventually, free_port, in_full, metric, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const CONNECTIONS: u32 = 20;
/// Requests that are under way on each connection.
const AT_A_TIME: u32 = 10;
const BODY: &str = r#"{"refresh_token":"no such token"}"#;

/// Knocks for each of these clients, which charges two limits of its address; they must all be let through.
async fn knock(address: SocketAddr, clients: std::ops::Range<u32>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    let clients: Vec<_> = clients.collect();
    for batch in clients.chunks(AT_A_TIME as usize) {
        let mut asked = String::new();
        for client in batch {
            let ip = Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + client);
            let _ = write!(
                asked,
                "POST /v1/auth/refresh HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {ip}\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{BODY}",
                BODY.len()
            );
        }
        stream.write_all(asked.as_bytes()).await.unwrap();
        bytes.clear();
        let answered = |bytes: &[u8]| bytes.windows(13).filter(|w| *w == b"HTTP/1.1 401 ").count();
        while answered(&bytes) < batch.len() {
            let n = tokio::time::timeout(S(60), stream.read(&mut piece)).await.expect("an answer").unwrap();
            assert!(n > 0, "closed after {}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&piece[..n]);
            let all = bytes.windows(9).filter(|w| *w == b"HTTP/1.1 ").count();
            assert_eq!(all, answered(&bytes), "{}", String::from_utf8_lossy(&bytes));
        }
    }
}

/// Case R8.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_clients_cost_bounded_memory_and_every_key_of_theirs_expires() {
    let clients: u32 = if in_full() { 1_000_000 } else { 4_000 };
    let deployment = Deployment::new().await;
    let port = free_port();
    // What one request takes is there again after a second, and then the key is of no use.
    let vars = [
        ("TRUSTED_PROXY", "127.0.0.1/32"),
        ("RATE_LIMIT_GLOBAL", "60/1m"),
        ("RATE_LIMIT_REFRESH", "60/1m"),
        ("LOG_LEVEL", "warn"),
    ];
    let mut api = deployment.start("api", port, &vars);
    ready(port).await;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    // The first ones make what every later one uses, such as connections.
    knock(address, 2_000_000..2_000_200).await;
    let before = api.memory_kib("VmRSS").unwrap_or(0) / 1024;

    let started = Instant::now();
    let each = clients / CONNECTIONS;
    let tasks: JoinSet<()> = (0..CONNECTIONS).map(|i| knock(address, i * each..(i + 1) * each)).collect();
    tasks.join_all().await;
    let took = started.elapsed();
    let peak = api.memory_kib("VmHWM").unwrap_or(0) / 1024;

    let mut redis = deployment.redis.connection().await;
    let pattern = format!("{}v1:rl:*", deployment.redis.prefix);
    let ended = Instant::now();
    eventually("every key has expired", S(60), async || {
        let mut command = db::redis_client::cmd("SCAN");
        command.arg(0).arg("MATCH").arg(&pattern).arg("COUNT").arg(10_000_000);
        let (_, left): (u64, Vec<String>) = command.query_async(&mut redis).await.unwrap();
        left.is_empty()
    })
    .await;
    println!(
        "{clients} clients in {took:?}: memory {before} -> {peak} MiB, every key gone {:?} later",
        ended.elapsed()
    );
    assert!(peak < before + 64, "{before} -> {peak} MiB");
    // Each charged two limits. Where Redis was not reached in time on a busy machine, local limits have decided.
    let decided = metric(port, "rate_limit_total", "outcome=\"allowed\"").await;
    assert!(decided >= f64::from(2 * clients), "{decided}");
    assert!(api.is_running(), "{}", api.output());
}
