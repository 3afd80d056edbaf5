//! A light load: connections that are kept alive, each with one request at a time, and the CPU that the server takes for it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::interrupts;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Linux counts time in these for user space, whatever the kernel's own clock is.
const TICK: Duration = Duration::from_millis(10);
/// One address may ask the API 1000 times at once, so a connection becomes somebody else before that.
const REQUESTS_PER_CLIENT: usize = 500;
/// How many addresses were used.
static CLIENTS: AtomicU32 = AtomicU32::new(0);

/// What is asked, and of whom.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: &'static str,
    pub(super) port: u16,
    pub(super) path: &'static str,
    pub(super) status: u16,
    /// Without it the request is anonymous.
    pub(super) token: Option<String>,
    /// The processes whose CPU counts.
    pub(super) pids: Vec<u32>,
}

/// What some requests took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

impl Target {
    /// `requests` requests over `connections` connections, after a tenth of that as warm-up.
    pub(super) fn measure(&self, connections: usize, requests: usize) -> Result<Cost> {
        let mut open: Vec<Connection> =
            (0..connections).map(|_| Connection::open(self.port)).collect::<Result<_>>()?;
        self.ask(&mut open, (requests / 10).max(connections))?;
        let (before, started) = (self.cpu()?, Instant::now());
        self.ask(&mut open, requests)?;
        let wall = started.elapsed();
        Ok(Cost { cpu: self.cpu()?.saturating_sub(before), wall })
    }

    /// The body of one answer.
    pub(super) fn body(&self) -> Result<Vec<u8>> {
        let mut connection = Connection::open(self.port)?;
        self.ask_once(&mut connection)?;
        Ok(connection.body)
    }

    fn ask(&self, open: &mut [Connection], requests: usize) -> Result<()> {
        let (each, rest) = (requests / open.len(), requests % open.len());
        let one = |connection: &mut Connection, count: usize| -> Result<()> {
            for _ in 0..count {
                interrupts::check()?;
                self.ask_once(connection)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = open
                .iter_mut()
                .enumerate()
                .map(|(i, connection)| scope.spawn(move || one(connection, each + usize::from(i < rest))))
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?
            })
        })
        .with_context(|| format!("GET {}", self.path))
    }

    fn ask_once(&self, connection: &mut Connection) -> Result<()> {
        if connection.asked.is_multiple_of(REQUESTS_PER_CLIENT) {
            connection.request = self.request(next_client());
        }
        connection.asked += 1;
        connection.ask(self.status)
    }

    fn request(&self, client: Ipv4Addr) -> String {
        let authorization =
            self.token.as_ref().map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let path = self.path;
        format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-forwarded-for: {client}\r\n{authorization}\r\n")
    }

    fn cpu(&self) -> Result<Duration> {
        self.pids.iter().map(|pid| cpu(*pid)).sum()
    }
}

/// An address that was not used yet: one alone meets the shield in front of the limits.
pub(super) fn next_client() -> Ipv4Addr {
    let client = CLIENTS.fetch_add(1, Ordering::Relaxed) % (1 << 24);
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + client)
}

/// Of sorted times, the one that so many of a thousand do not exceed.
pub(super) fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    sorted[(sorted.len() * per_mille / 1_000).min(sorted.len() - 1)]
}

struct Connection {
    stream: TcpStream,
    request: String,
    asked: usize,
    read: Vec<u8>,
    body: Vec<u8>,
}

impl Connection {
    fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .with_context(|| format!("nothing answers on port {port}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream, request: String::new(), asked: 0, read: Vec::new(), body: Vec::new() })
    }

    fn ask(&mut self, status: u16) -> Result<()> {
        self.stream.write_all(self.request.as_bytes()).context("the connection was closed")?;
        self.read.clear();
        let mut piece = [0; 4 * 1024];
        let (head, length) = loop {
            let count = self.stream.read(&mut piece).context("no answer")?;
            ensure!(count > 0, "the connection was closed");
            self.read.extend_from_slice(&piece[..count]);
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = std::str::from_utf8(&self.read[..end]).context("no HTTP answer")?;
                let length = content_length(head).context("an answer without content-length")?;
                if self.read.len() >= end + 4 + length {
                    break (head, length);
                }
            }
        };
        let got = head.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
        if got != Some(status) {
            bail!("not answered with {status}:\n{}", String::from_utf8_lossy(&self.read));
        }
        self.body.clear();
        self.body.extend_from_slice(&self.read[self.read.len() - length..]);
        Ok(())
    }
}

fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

/// What a process and its threads have taken so far, in the program and in the kernel.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = fields(&stat).and_then(|fields| Some(fields.get(11)? + fields.get(12)?));
    let ticks = ticks.and_then(|ticks| u32::try_from(ticks).ok());
    Ok(TICK * ticks.with_context(|| format!("{path} is not as expected"))?)
}

/// The children of a process.
pub(super) fn children(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").context("this needs Linux: there is no /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile is nobody's.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if fields(&stat).and_then(|fields| fields.get(1).copied()) == Some(u64::from(parent)) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The fields behind the program's name, which may hold anything. Letters and negative numbers are 0.
fn fields(stat: &str) -> Option<Vec<u64>> {
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_process_are_found_behind_any_name() {
        let fields = fields("7 (a ) b) S 3 7 7 0 -1 4194560 1 2 3 4 50 60 0 0 20").unwrap();
        assert_eq!((fields[1], fields[11], fields[12]), (3, 50, 60));
    }

    #[test]
    fn the_length_of_a_body_is_found_in_any_case() {
        assert_eq!(content_length("HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX: y"), Some(12));
        assert_eq!(content_length("HTTP/1.1 200 OK\r\ncontent-length:3"), Some(3));
        assert_eq!(content_length("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked"), None);
    }

    #[test]
    fn the_children_of_this_process_and_its_time_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = children(std::process::id()).unwrap();
        let time = cpu(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()), "{found:?}");
        assert!(time.unwrap() < Duration::from_secs(10));
    }
}
