//! Processor time and allocations per chunk of `sse::RelayBody`, as the API uses it: every event is looked at, nothing is changed.
//!
//! Exits with 1 when a case allocates more than it may, so that a run is a check as well.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    convert::Infallible,
    hint::black_box,
    ops::ControlFlow,
    pin::Pin,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use sse::{End, Event, RelayBody, Signal, Verdict, Watch};

/// The system's allocator, which counts.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CHUNKS: usize = 1 << 20;
const EVENT: &str = "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1735689600,\"model\":\"sim-small\",\
                     \"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";

/// Gives the same pieces again and again, so many at a time; then it has nothing for a moment.
struct Source {
    pieces: Vec<Bytes>,
    at: usize,
    burst: usize,
    left_of_burst: usize,
}

impl Body for Source {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.at == CHUNKS {
            return Poll::Ready(None);
        }
        if self.left_of_burst == 0 {
            self.left_of_burst = self.burst;
            return Poll::Pending;
        }
        self.left_of_burst -= 1;
        let piece = self.pieces[self.at % self.pieces.len()].clone();
        self.at += 1;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

/// Reads every event, as the API does in search of usage and errors.
struct Reader {
    events: u64,
    bytes: u64,
}

impl Watch<Infallible> for Reader {
    fn frame(&mut self, length: usize) -> ControlFlow<Bytes> {
        self.bytes += length as u64;
        ControlFlow::Continue(())
    }

    fn event(&mut self, event: Event<'_>) -> Verdict {
        let parts = event.parts();
        let data = parts.data.as_deref().unwrap_or_default();
        self.events += u64::from(!black_box(data).is_empty());
        Verdict::Keep
    }

    fn poll_signal(&mut self, _: &mut Context<'_>, _: bool) -> Poll<Signal> {
        Poll::Pending
    }

    fn end(&mut self, _: End<Infallible>) -> Bytes {
        Bytes::new()
    }
}

struct Figures {
    allocations: f64,
    time: Duration,
    frames: u64,
}

/// What this thread has had of the processor, which other load on the machine does not change: the first field of
/// <https://docs.kernel.org/scheduler/sched-stats.html>.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the benchmark needs Linux");
    let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.expect("schedstat begins with a number"))
}

/// Polls a body to its end. A poll that is pending is repeated: that is the wake-up.
fn drain(body: impl Body<Data = Bytes, Error = Infallible>) -> Figures {
    let mut body = std::pin::pin!(body);
    let mut context = Context::from_waker(Waker::noop());
    let started = processor_time();
    let (before, mut frames) = (ALLOCATIONS.load(Ordering::Relaxed), 0);
    loop {
        match body.as_mut().poll_frame(&mut context) {
            Poll::Pending => {}
            Poll::Ready(None) => break,
            Poll::Ready(Some(frame)) => {
                frames += 1;
                black_box(frame).ok();
            }
        }
    }
    let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
    let time = processor_time().saturating_sub(started);
    let allocations = allocated as f64 / CHUNKS as f64;
    Figures { allocations, time, frames }
}

fn main() -> ExitCode {
    let whole = vec![Bytes::from_static(EVENT.as_bytes())];
    // Each event in two pieces: the relay holds the first back until the second is there.
    let (one, two) = EVENT.as_bytes().split_at(EVENT.len() / 2);
    let halves = vec![Bytes::from_static(one), Bytes::from_static(two)];
    let cases: [(&str, &[Bytes], usize, f64); 4] = [
        ("an event per wake-up", &whole, 1, 0.0001),
        ("8 events per wake-up, joined", &whole, 8, 0.26),
        ("64 events per wake-up, joined", &whole, 64, 0.05),
        ("half an event per wake-up", &halves, 1, 0.51),
    ];
    println!("{CHUNKS} chunks of {} bytes\n", EVENT.len());
    println!("{:<32}{:>14}{:>14}{:>14}{:>16}", "", "without", "with relay", "relay alone", "allocations");
    let mut fine = true;
    for (name, pieces, burst, most) in cases {
        let source = || Source { pieces: pieces.to_vec(), at: 0, burst, left_of_burst: burst };
        let relay = || RelayBody::new(source(), Reader { events: 0, bytes: 0 });
        // The fastest of several: what else the machine does only adds.
        let best =
            |run: &dyn Fn() -> Figures| (0..5).map(|_| run()).min_by_key(|f| f.time).expect("five runs");
        let bare = best(&|| drain(source()));
        let relayed = best(&|| drain(relay()));
        let ns = |time: Duration| time.as_nanos() as f64 / CHUNKS as f64;
        println!(
            "{name:<32}{:>11.0} ns{:>11.0} ns{:>11.0} ns{:>10.4} / chunk   {} frames out",
            ns(bare.time),
            ns(relayed.time),
            ns(relayed.time) - ns(bare.time),
            relayed.allocations,
            relayed.frames
        );
        fine &= relayed.allocations <= most;
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
