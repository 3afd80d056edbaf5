//! Many streams at a time, to the engine directly, through nginx and through the API: memory of idle ones, CPU per event, and
//! events per second.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, Scope, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::load;
use crate::interrupts;

const TIMEOUT: Duration = Duration::from_secs(120);
/// What a thread needs that only reads.
const STACK: usize = 128 << 10;
/// Events of the paced streams are counted for so long.
const WINDOW: Duration = Duration::from_secs(8);
/// The streams are set up within this, however many they are.
const SET_UP: Duration = Duration::from_secs(60);

/// A way to the engine.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) port: u16,
    /// For the API.
    pub(super) key: Option<String>,
    /// What stands in between; nothing for the direct way.
    pub(super) pids: Vec<u32>,
}

impl Way {
    /// Begins a stream that the simulated engine answers as told.
    pub(super) fn open(&self, sim: &str) -> Result<TcpStream> {
        let body = format!(
            r#"{{"model":"sim-small","stream":true,"messages":[{{"role":"user","content":"[[sim {sim}]] hello"}}]}}"#
        );
        let authorization =
            self.key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        let client = load::next_client();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-forwarded-for: {client}\r\ncontent-type: application/json\r\n{authorization}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
            .with_context(|| format!("{} does not answer", self.name))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        Ok(stream)
    }

    /// Bytes that one idle stream takes: `count` of them have had their first event, and nothing else comes.
    pub(super) fn idle(&self, count: usize) -> Result<u64> {
        let before = self.memory()?;
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            interrupts::check()?;
            let mut stream = self.open("tokens=2 token-interval-ms=900000")?;
            Events::default().read_until(&mut stream, 1).with_context(|| {
                format!("stream {} of {count} through {} has no first event", open.len() + 1, self.name)
            })?;
            open.push(stream);
        }
        sleep(Duration::from_secs(2));
        Ok(self.memory()?.saturating_sub(before) / count as u64)
    }

    /// CPU that one event takes, with so many streams of ten events a second each.
    pub(super) fn paced(&self, streams: usize) -> Result<Duration> {
        let counters = Counters::default();
        self.beside(&counters, streams, 100, || self.window(&counters))
    }

    fn window(&self, counters: &Counters) -> Result<Duration> {
        let (cpu, events) = (self.cpu()?, counters.events.load(Ordering::Relaxed));
        sleep(WINDOW);
        let (cpu, events) =
            (self.cpu()?.saturating_sub(cpu), counters.events.load(Ordering::Relaxed) - events);
        ensure!(events > 0, "no events through {}", self.name);
        Ok(cpu / u32::try_from(events).context("fewer events than that")?)
    }

    /// Events per second of so many streams that the engine writes as fast as they are read.
    pub(super) fn unthrottled(&self, streams: usize, events: usize) -> Result<f64> {
        let counters = Counters::default();
        let started = Instant::now();
        std::thread::scope(|scope| {
            let _over = Over(&counters);
            join(counters.readers(scope, self, streams, &format!("tokens={events} token-interval-ms=0"))?)
        })?;
        Ok(counters.events.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
    }

    /// Does something while so many streams of an event each `pause_ms` go on. They end with it, however it ends.
    pub(super) fn beside<T>(
        &self,
        counters: &Counters,
        streams: usize,
        pause_ms: u64,
        what: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        std::thread::scope(|scope| {
            // A scope waits for its threads, so whatever leaves it has to end them.
            let _over = Over(counters);
            let sim = format!("tokens=100000 token-interval-ms={pause_ms}");
            let readers = counters.readers(scope, self, streams, &sim)?;
            let until = Instant::now() + SET_UP;
            while counters.begun.load(Ordering::Relaxed) < streams {
                interrupts::check()?;
                ensure!(Instant::now() < until, "not all streams through {} have begun", self.name);
                sleep(Duration::from_millis(20));
            }
            let done = what();
            counters.over.store(true, Ordering::Relaxed);
            join(readers).and(done)
        })
    }

    fn cpu(&self) -> Result<Duration> {
        self.pids.iter().map(|pid| load::cpu(*pid)).sum()
    }

    fn memory(&self) -> Result<u64> {
        self.pids.iter().map(|pid| private_memory(*pid)).sum()
    }
}

/// What the readers of many streams have seen.
#[derive(Debug, Default)]
pub(super) struct Counters {
    begun: AtomicUsize,
    events: AtomicU64,
    over: AtomicBool,
}

impl Counters {
    /// A thread for each stream. They end with their stream, or soon after `over`.
    fn readers<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        way: &'scope Way,
        streams: usize,
        sim: &str,
    ) -> Result<Vec<ScopedJoinHandle<'scope, Result<()>>>> {
        (0..streams)
            .map(|_| {
                let sim = sim.to_owned();
                let read = move || self.read(way, &sim);
                Builder::new().stack_size(STACK).spawn_scoped(scope, read).context("no more threads")
            })
            .collect()
    }

    fn read(&self, way: &Way, sim: &str) -> Result<()> {
        let (mut stream, mut seen, mut piece) = (way.open(sim)?, Events::default(), [0; 16 << 10]);
        loop {
            let count = stream.read(&mut piece).context("a stream broke off")?;
            let events = seen.count(&piece[..count]);
            if seen.all == events && events > 0 {
                self.begun.fetch_add(1, Ordering::Relaxed);
            }
            self.events.fetch_add(events, Ordering::Relaxed);
            if count == 0 || self.over.load(Ordering::Relaxed) {
                ensure!(seen.all > 0, "a stream without an event");
                return Ok(());
            }
        }
    }
}

fn join(readers: Vec<ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    readers.into_iter().try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
}

/// Ends the readers when it is dropped.
struct Over<'a>(&'a Counters);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Counts events by their blank lines, wherever the bytes are cut. The framing of HTTP has carriage returns.
#[derive(Debug, Default)]
struct Events {
    /// The last byte was a line feed.
    line_feed: bool,
    all: u64,
}

impl Events {
    fn count(&mut self, bytes: &[u8]) -> u64 {
        let mut events = 0;
        for byte in bytes {
            let ends = *byte == b'\n';
            events += u64::from(ends && self.line_feed);
            self.line_feed = ends && !self.line_feed;
        }
        self.all += events;
        events
    }

    fn read_until(&mut self, stream: &mut TcpStream, events: u64) -> Result<()> {
        let (mut piece, mut last) = ([0; 4 << 10], String::new());
        while self.all < events {
            let count = stream.read(&mut piece)?;
            ensure!(count > 0, "it ended: {last}");
            self.count(&piece[..count]);
            last = String::from_utf8_lossy(&piece[..count]).into_owned();
        }
        Ok(())
    }
}

/// Memory that is this process's alone. Shared pages are the program itself.
fn private_memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let kib = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let figure = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        figure.with_context(|| format!("{path} has no {name}"))
    };
    Ok((kib("Private_Clean:")? + kib("Private_Dirty:")?) * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_wherever_the_bytes_are_cut() {
        let text =
            b"HTTP/1.1 200 OK\r\n\r\n1a\r\ndata: {}\n\n\r\n8\r\n: ping\n\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        assert_eq!(Events::default().count(text), 3);
        for cut in 0..text.len() {
            let mut events = Events::default();
            assert_eq!(events.count(&text[..cut]) + events.count(&text[cut..]), 3, "{cut}");
        }
    }
}
