//! A TCP proxy that breaks connections on demand, in front of Postgres, Redis or the engine.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// What the proxy does with connections, those that exist included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// Nobody listens: new connections are refused, existing ones reset. A server that is down.
    Refuse,
    /// Nothing is forwarded in either direction, nothing is closed. A network partition; [`Mode::Pass`] heals it and
    /// held bytes arrive then. New connections are accepted (the kernel does that for a partitioned server too, as long
    /// as its backlog lasts) but reach nobody.
    Blackhole,
    /// Connections are accepted and reset at once.
    Reset,
    /// Each chunk arrives later by this time, in both directions.
    Latency(Duration),
    /// At most this many bytes per second in each direction.
    Bandwidth(u32),
    /// Each connection is reset after this many bytes towards the client, counted from when the mode was set.
    CutAfter(u64),
}

/// The proxy; it ends, and its connections with it, when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    counts: Arc<Counts>,
    /// Bound, not listening: keeps the port ours while connections are refused.
    _reservation: TcpSocket,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl FaultProxy {
    /// A proxy in front of `upstream`, on a free port of 127.0.0.1, in [`Mode::Pass`].
    /// Needs a tokio runtime around it.
    pub fn start(upstream: SocketAddr) -> Self {
        Self::try_start(upstream).unwrap_or_else(|error| panic!("no fault proxy: {error:#}"))
    }

    /// A proxy in front of the server of a URL, and the URL through the proxy.
    pub async fn in_front_of(url: &str) -> (Self, String) {
        let mut through = Url::parse(url).expect("a URL");
        let port = through.port().unwrap_or(match through.scheme() {
            "postgres" | "postgresql" => 5432,
            "redis" | "rediss" => 6379,
            "https" => 443,
            _ => 80,
        });
        let host = through.host_str().expect("a URL with a host").trim_matches(['[', ']']).to_owned();
        let upstream = tokio::net::lookup_host((host, port)).await.ok().and_then(|mut found| found.next());
        let proxy = Self::start(upstream.expect("the host has an address"));
        through.set_host(Some("127.0.0.1")).expect("the URL has a host");
        through.set_port(Some(proxy.address.port())).expect("the URL has a host");
        (proxy, through.into())
    }

    fn try_start(upstream: SocketAddr) -> Result<Self> {
        let reservation = reuse_socket((Ipv4Addr::LOCALHOST, 0).into()).context("no free port")?;
        let address = reservation.local_addr().context("a bound socket has an address")?;
        let (mode, watched) = watch::channel(Mode::Pass);
        let counts = Arc::new(Counts::default());
        let listener = listen(address).context("cannot listen")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, upstream, watched, Arc::clone(&counts)));
        Ok(Self { address, mode, counts, _reservation: reservation, _tasks: tasks })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the behaviour from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }
}

fn reuse_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    reuse_socket(address)?.listen(1024)
}

async fn accept(
    first: TcpListener,
    upstream: SocketAddr,
    mut mode: watch::Receiver<Mode>,
    counts: Arc<Counts>,
) {
    let address = first.local_addr().expect("a listening socket has an address");
    let mut listener = Some(first);
    let mut connections = JoinSet::new();
    loop {
        if *mode.borrow_and_update() == Mode::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = listen(address).ok();
        }
        tokio::select! {
            changed = mode.changed() => if changed.is_err() { return },
            accepted = next(listener.as_ref()) => if let Ok(client) = accepted {
                counts.accepted.fetch_add(1, Ordering::Relaxed);
                let (mode, counts) = (mode.clone(), Arc::clone(&counts));
                connections.spawn(async move {
                    counts.open.fetch_add(1, Ordering::Relaxed);
                    let _closed = OnDrop(&counts.open);
                    relay(client, upstream, mode).await;
                });
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

struct OnDrop<'a>(&'a AtomicUsize);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connection has to be reset.
struct Broken;

async fn relay(mut client: TcpStream, upstream: SocketAddr, mut mode: watch::Receiver<Mode>) {
    let _ = client.set_nodelay(true);
    if gate(&mut mode).await.is_err() {
        reset(client);
        return;
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        reset(client);
        return;
    };
    let _ = server.set_nodelay(true);
    let outcome = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(from_client, to_server, mode.clone(), false);
        let down = pump(from_server, to_client, mode, true);
        tokio::try_join!(up, down)
    };
    if outcome.is_err() {
        reset(client);
        reset(server);
    }
}

/// Closes with RST instead of FIN, as a killed or rebooted peer does.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
    drop(stream);
}

/// Waits while nothing may pass.
async fn gate(mode: &mut watch::Receiver<Mode>) -> Result<Mode, Broken> {
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Refuse | Mode::Reset => return Err(Broken),
            Mode::Blackhole => mode.changed().await.map_err(|_| Broken)?,
            _ => return Ok(now),
        }
    }
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut mode: watch::Receiver<Mode>,
    towards_client: bool,
) -> Result<(), Broken> {
    let mut buffer = vec![0_u8; 16 * 1024];
    let mut last = None;
    let mut sent = 0_u64;
    loop {
        let now = gate(&mut mode).await?;
        if last.replace(now) != Some(now) {
            sent = 0;
        }
        // With a limit, small steps: a twentieth of a second each.
        let step = match now {
            Mode::Bandwidth(rate) => (rate as usize / 20).clamp(1, buffer.len()),
            _ => buffer.len(),
        };
        let read = tokio::select! {
            changed = mode.changed() => { changed.map_err(|_| Broken)?; continue; }
            read = from.read(&mut buffer[..step]) => read.map_err(|_| Broken)?,
        };
        if read == 0 {
            return to.shutdown().await.map_err(|_| Broken);
        }
        match now {
            Mode::Latency(delay) => tokio::time::sleep(delay).await,
            Mode::Bandwidth(rate) => {
                tokio::time::sleep(Duration::from_secs_f64(read as f64 / f64::from(rate.max(1)))).await;
            }
            _ => {}
        }
        // The mode may have changed while this chunk was held.
        gate(&mut mode).await?;
        if let Mode::CutAfter(limit) = now
            && towards_client
        {
            let left = limit.saturating_sub(sent).min(read as u64);
            to.write_all(&buffer[..left as usize]).await.map_err(|_| Broken)?;
            sent += left;
            if sent >= limit {
                // What was allowed has to arrive: a reset right behind it would overtake it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Err(Broken);
            }
        } else {
            to.write_all(&buffer[..read]).await.map_err(|_| Broken)?;
            sent += read as u64;
        }
    }
}
