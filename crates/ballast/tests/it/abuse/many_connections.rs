//! More connections than anybody needs, on the real binary.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Deployment, PASSWORD, eventually, free_port, in_full, insert_user, metric, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

/// A connection that has had its answer and is kept.
async fn idle(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 4096];
    let n = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
    stream
}

/// Sends a head, a byte a second, and begins anew when it is closed; until it is aborted.
async fn slow(address: SocketAddr, closed: &AtomicUsize) {
    loop {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            tokio::time::sleep(MS(100)).await;
            continue;
        };
        let mut ok = stream.write_all(b"GET /livez HTTP/1.1\r\nX: ").await.is_ok();
        while ok {
            tokio::time::sleep(S(1)).await;
            ok = stream.write_all(b"x").await.is_ok();
        }
        closed.fetch_add(1, Ordering::Relaxed);
    }
}

fn percentile(mut times: Vec<Duration>, per_cent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * per_cent / 100).min(times.len() - 1)]
}

/// Case H2.
#[tokio::test(flavor = "multi_thread")]
async fn many_idle_and_slow_connections_do_not_keep_a_good_client_from_being_served() {
    let (idle_ones, slow_ones): (u32, u32) = if in_full() { (10_000, 2_000) } else { (300, 100) };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let needed = (idle_ones + slow_ones) * 4 / 3 + 500;
    assert!(
        hard >= u64::from(needed),
        "this needs {needed} open files, and the limit is {hard} (ulimit -Hn)"
    );

    let deployment = Deployment::new().await;
    let port = free_port();
    let room = "1000000/15m";
    let vars = [("RATE_LIMIT_LOGIN", room), ("RATE_LIMIT_GLOBAL", room)];
    let mut api = deployment.start("api", port, &vars);
    ready(port).await;
    let (address, url) = (SocketAddr::from(([127, 0, 0, 1], port)), format!("http://127.0.0.1:{port}"));
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(S(30)).build().unwrap();
    let account = json!({ "email": "good@example.com", "password": PASSWORD });
    insert_user(deployment.database.pool(), "good@example.com", "user").await;
    let before = api.memory_kib("VmRSS").unwrap_or(0) / 1024;

    let held: Vec<TcpStream> =
        stream::iter(0..idle_ones).map(|_| idle(address)).buffer_unordered(100).collect().await;
    let closed: &'static AtomicUsize = Box::leak(Box::default());
    let slow: Vec<_> = (0..slow_ones).map(|_| tokio::spawn(slow(address, closed))).collect();
    eventually("all are there", S(30), async || {
        metric(port, "http_connections", "").await >= f64::from(idle_ones + slow_ones)
    })
    .await;

    let (mut alive, mut logins) = (Vec::new(), Vec::new());
    for turn in 0..200 {
        let started = Instant::now();
        assert_eq!(client.get(format!("{url}/livez")).send().await.unwrap().status(), 200);
        alive.push(started.elapsed());
        if turn % 4 == 0 {
            let started = Instant::now();
            let login = client.post(format!("{url}/v1/auth/login")).json(&account).send().await.unwrap();
            assert_eq!(login.status(), 200);
            logins.push(started.elapsed());
        }
        tokio::time::sleep(MS(if in_full() { 100 } else { 10 })).await;
    }
    let peak = api.memory_kib("VmHWM").unwrap_or(0) / 1024;
    let (alive, logins) = (percentile(alive, 99), percentile(logins, 99));
    let connections = metric(port, "http_connections", "").await;
    println!(
        "{idle_ones} idle and {slow_ones} slow connections ({connections} open at the end, {} slow ones closed): /livez p99 {alive:?}, \
         login p99 {logins:?}, memory {before} -> {peak} MiB",
        closed.load(Ordering::Relaxed)
    );
    let bound = if in_full() { MS(500) } else { S(3) };
    assert!(alive < bound && logins < bound, "/livez {alive:?}, login {logins:?}");
    assert!(peak < 600, "{peak} MiB");
    assert!(
        !in_full() || closed.load(Ordering::Relaxed) >= slow_ones as usize,
        "slow heads are closed after ten seconds"
    );

    slow.iter().for_each(tokio::task::JoinHandle::abort);
    drop(held);
    eventually("all are gone", S(20), async || metric(port, "http_connections", "").await <= 10.0).await;
    assert!(api.is_running(), "{}", api.output());
}

/// Case H2: a limit on open files, far below what comes.
#[tokio::test(flavor = "multi_thread")]
async fn with_few_open_files_a_flood_of_connections_takes_none_from_the_database_and_passes() {
    const FILES: usize = 200;
    let flood = if in_full() { 3_000 } else { 600 };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let deployment = Deployment::new().await;
    let port = free_port();
    let mut api = deployment.start_with_files(FILES, "api", port);
    ready(port).await;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let client = reqwest::Client::builder().timeout(S(60)).build().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    // A connection from before the flood: what it asks needs the database, which must still get connections.
    let account = json!({ "email": "good@example.com", "password": PASSWORD });
    insert_user(deployment.database.pool(), "good@example.com", "user").await;

    let held: Vec<_> =
        stream::iter(0..flood).map(|_| TcpStream::connect(address)).buffer_unordered(100).collect().await;
    assert!(held.iter().filter(|stream| stream.is_ok()).count() > FILES);
    let login = client.post(format!("{url}/v1/auth/login")).json(&account).send().await.unwrap();
    assert_eq!(login.status(), 200, "while the connections are used up");
    let asked = Instant::now();
    let fresh = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(S(60)).build().unwrap();
    assert_eq!(fresh.get(format!("{url}/livez")).send().await.unwrap().status(), 200);
    println!(
        "{flood} silent connections, {FILES} files: a new client was served after {:?}",
        asked.elapsed()
    );
    drop(held);
    eventually("it has recovered", S(30), async || {
        fresh.get(format!("{url}/readyz")).send().await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    assert!(api.is_running(), "{}", api.output());
    let output = api.output();
    assert!(output.contains("open files"), "it was told at the start: {output}");
    assert!(!output.contains("accept failed"), "{output}");
}
