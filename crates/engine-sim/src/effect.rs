//! What a fault does to the steps of an answer. Faults of the response head are in `exchange`, refusal is in `server`.

use std::io::Write;
use std::iter::{once, repeat};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::Fault;
use crate::hash::SplitMix;
use crate::script::{Script, Step, Steps};

const BLOCK: usize = 64 * 1024;
/// Long enough for a reader on the same machine to have taken what was sent before: a reset discards what was not.
const BEFORE_CUT: Duration = Duration::from_millis(20);
const HALF_CHUNK: &[u8] =
    b"data: {\"id\":\"engine-sim\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"torn\"}}]}\n\n";
const INVALID_UTF8: &[u8] =
    b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\xff\xfe \xe4\xbd \xf0\x9f\"}}]}\n\n";
const NAMED_ERROR: &[u8] = b"event: error\ndata: {\"error\":{\"message\":\"simulated fault: named error\",\
    \"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n";
/// Each is legal in an event stream and means nothing.
const EMPTY_EVENTS: [&[u8]; 6] =
    [b"\n\n", b"data:\n\n", b"event: ping\n\n", b":\n\n", b"id: 7\n\n", b"retry: 1000\n\n"];

/// The steps of the whole stream, with the fault in it.
pub(crate) fn apply(fault: Option<&Fault>, script: Script) -> Steps {
    let Script { steps, closing, failure } = script;
    let closing = once(Step::Send(closing));
    let Some(fault) = fault else { return Box::new(steps.chain(closing)) };
    match fault {
        Fault::NoDone => steps,
        Fault::DoneOpen => Box::new(steps.chain(closing).chain(once(Step::Hang))),
        Fault::HangAfterHeaders => Box::new(once(Step::Hang)),
        Fault::Stall(tokens) => Box::new(before(steps, *tokens, is_tick).chain(once(Step::Hang))),
        Fault::Reset(chunks) => cut(steps, *chunks, Step::Reset),
        Fault::HalfChunk(chunks) => cut(steps, *chunks, Step::HalfChunk(Bytes::from_static(HALF_CHUNK))),
        Fault::Garbage(bytes) => garbage(*bytes),
        Fault::Comments(interval) => comments(*interval),
        Fault::NoNewline(bytes) => Box::new(once(send(b"data: ")).chain(filler(*bytes))),
        Fault::LongLine(bytes) => {
            let line = once(send(b"data: {\"choices\":[],\"simulation\":\"")).chain(filler(*bytes));
            after_first_event(steps.chain(closing), line.chain(once(send(b"\"}\n\n"))))
        }
        Fault::InvalidUtf8 => after_first_event(steps.chain(closing), once(send(INVALID_UTF8))),
        Fault::InBandError(tokens) => {
            Box::new(before(steps, *tokens, is_tick).chain(once(Step::Send(failure))))
        }
        Fault::NamedError(tokens) => Box::new(before(steps, *tokens, is_tick).chain(once(send(NAMED_ERROR)))),
        Fault::Crlf => line_ends(steps.chain(closing), b"\r\n"),
        Fault::Cr => line_ends(steps.chain(closing), b"\r"),
        Fault::Bom => Box::new(once(send("\u{feff}".as_bytes())).chain(steps).chain(closing)),
        Fault::Gzip => gzip(steps.chain(closing)),
        Fault::Split(size) => split(steps.chain(closing), *size),
        Fault::EmptyEvents => empty_events(steps.chain(closing)),
        // These have done their work before there is a body.
        Fault::Refuse(_)
        | Fault::HangBeforeHeaders
        | Fault::CloseBeforeHeaders
        | Fault::ResetBeforeHeaders
        | Fault::SlowHeaders(_)
        | Fault::Html
        | Fault::Status(_)
        | Fault::Redirect(_) => Box::new(steps.chain(closing)),
    }
}

fn send(bytes: &'static [u8]) -> Step {
    Step::Send(Bytes::from_static(bytes))
}

fn is_tick(step: &Step) -> bool {
    matches!(step, Step::Tick)
}

fn is_send(step: &Step) -> bool {
    matches!(step, Step::Send(_))
}

/// Everything up to, and not including, the step that would be number `count + 1` of its kind.
fn before(steps: Steps, count: usize, kind: fn(&Step) -> bool) -> impl Iterator<Item = Step> + Send {
    let mut seen = 0;
    steps.take_while(move |step| {
        seen += usize::from(kind(step));
        seen <= count
    })
}

fn cut(steps: Steps, chunks: usize, ending: Step) -> Steps {
    Box::new(before(steps, chunks, is_send).chain([Step::Pause(BEFORE_CUT), ending]))
}

fn comments(interval: Duration) -> Steps {
    // A pause of nothing would keep one core busy for ever.
    let pause = Step::Pause(interval.max(Duration::from_millis(1)));
    Box::new(repeat([send(b": simulated comment\n\n"), pause]).flatten())
}

/// So many bytes of `x`, all from one block of memory.
fn filler(bytes: usize) -> impl Iterator<Item = Step> + Send {
    let block = Bytes::from(vec![b'x'; BLOCK]);
    (0..bytes).step_by(BLOCK).map(move |sent| Step::Send(block.slice(..BLOCK.min(bytes - sent))))
}

fn garbage(bytes: usize) -> Steps {
    let mut random = SplitMix(0);
    let mut left = bytes;
    Box::new(std::iter::from_fn(move || {
        let size = left.min(BLOCK);
        left -= size;
        let block: Bytes = (0..size).map(|_| random.next() as u8).collect();
        (size > 0).then_some(Step::Send(block))
    }))
}

fn after_first_event(
    steps: impl Iterator<Item = Step> + Send + 'static,
    insert: impl Iterator<Item = Step> + Send + 'static,
) -> Steps {
    let mut insert = Some(insert);
    Box::new(steps.flat_map(move |step| {
        let inserted = if is_send(&step) { insert.take() } else { None };
        once(step).chain(inserted.into_iter().flatten())
    }))
}

fn line_ends(steps: impl Iterator<Item = Step> + Send + 'static, end: &'static [u8]) -> Steps {
    Box::new(steps.map(move |step| match step {
        Step::Send(bytes) => {
            Step::Send(bytes.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(end).into())
        }
        other => other,
    }))
}

fn empty_events(steps: impl Iterator<Item = Step> + Send + 'static) -> Steps {
    let mut empty = EMPTY_EVENTS.iter().cycle();
    Box::new(steps.flat_map(move |step| {
        let next = if is_send(&step) { empty.next() } else { None };
        once(step).chain(next.map(|event| send(event)))
    }))
}

fn gzip(steps: impl Iterator<Item = Step> + Send + 'static) -> Steps {
    const IN_MEMORY: &str = "writing to a Vec cannot fail";
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    Box::new(steps.map(Some).chain(once(None)).map(move |step| match step {
        Some(Step::Send(bytes)) => {
            encoder.write_all(&bytes).expect(IN_MEMORY);
            encoder.flush().expect(IN_MEMORY);
            Step::Send(std::mem::take(encoder.get_mut()).into())
        }
        Some(other) => other,
        None => {
            encoder.try_finish().expect(IN_MEMORY);
            Step::Send(std::mem::take(encoder.get_mut()).into())
        }
    }))
}

fn split(steps: impl Iterator<Item = Step> + Send + 'static, size: usize) -> Steps {
    let mut waiting = BytesMut::new();
    Box::new(steps.map(Some).chain(once(None)).flat_map(move |step| {
        let mut out = Vec::new();
        match step {
            Some(Step::Send(bytes)) => {
                waiting.extend_from_slice(&bytes);
                while waiting.len() >= size {
                    out.extend([Step::Send(waiting.split_to(size).freeze()), Step::Flush]);
                }
            }
            Some(other) => out.push(other),
            None => out.push(Step::Send(waiting.split().freeze())),
        }
        out
    }))
}
