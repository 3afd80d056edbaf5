//! The relay as an HTTP body: whatever source and watch do, and whenever the source pauses, the reader sees whole events, and an end.

#![no_main]

use std::{
    cell::Cell,
    collections::VecDeque,
    convert::Infallible,
    ops::ControlFlow,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use fuzz::{Pieces, events, without_bom};
use http_body::{Body, Frame};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use sse::{End, Event, RelayBody, Signal, Verdict, Watch};

const PING: &[u8] = b": ping\n\n";
/// No field of a stream begins so.
const LAST_WORDS: &[u8] = b"data: the last words\n\n";

#[derive(Debug, Arbitrary)]
struct Input {
    /// Before which pieces the source pauses, bit by bit.
    pauses: u32,
    /// What the watch says in a pause.
    pause: Pause,
    /// Every so many events one is left out; 0 for none.
    leave_out: u8,
    /// The event that is the last one, if there are so many.
    last: Option<u8>,
    /// The watch ends the stream at the frame of this number.
    stop_at: Option<u8>,
    fails: bool,
    pieces: Pieces,
}

#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Pause {
    Nothing,
    Ping,
    /// With the pause of this number.
    End(u8),
}

struct Source {
    /// `None` is a pause.
    steps: VecDeque<Option<Bytes>>,
    fails: bool,
    dropped: Rc<Cell<bool>>,
}

impl Body for Source {
    type Data = Bytes;
    type Error = ();

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        match self.steps.pop_front() {
            Some(Some(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(None) => Poll::Pending,
            None if self.fails => Poll::Ready(Some(Err(()))),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.dropped.set(true);
    }
}

/// What happened, for who asks in the end.
#[derive(Default)]
struct Seen {
    events: Cell<usize>,
    kept: Cell<Vec<Vec<u8>>>,
    /// The last words went out.
    spoke: Cell<bool>,
    /// The watch saw the last event.
    closed: Cell<bool>,
}

struct Follow {
    input: Rc<Input>,
    seen: Rc<Seen>,
    frames: u32,
    pauses: u32,
    pinged: bool,
}

impl Follow {
    fn last_words(&self) -> Bytes {
        // After the last event the reader has seen everything.
        self.seen.spoke.set(!self.seen.closed.get());
        Bytes::from_static(LAST_WORDS)
    }
}

impl Watch<()> for Follow {
    fn frame(&mut self, _: usize) -> ControlFlow<Bytes> {
        self.frames += 1;
        self.pinged = false;
        if self.input.stop_at.is_some_and(|at| self.frames > u32::from(at)) {
            return ControlFlow::Break(self.last_words());
        }
        ControlFlow::Continue(())
    }

    fn event(&mut self, event: Event<'_>) -> Verdict {
        assert!(!self.seen.closed.get(), "nothing is shown after the last event");
        let number = self.seen.events.get() + 1;
        self.seen.events.set(number);
        if self.input.leave_out > 0 && number % usize::from(self.input.leave_out) == 0 {
            return Verdict::Drop;
        }
        let mut kept = self.seen.kept.take();
        kept.extend(event.data().map(|data| data.into_owned()));
        self.seen.kept.set(kept);
        if self.input.last.is_some_and(|last| number > usize::from(last)) {
            self.seen.closed.set(true);
            return Verdict::Last;
        }
        Verdict::Keep
    }

    fn poll_signal(&mut self, _: &mut Context<'_>, between: bool) -> Poll<Signal> {
        self.pauses += 1;
        match self.input.pause {
            Pause::Ping if between && !std::mem::replace(&mut self.pinged, true) => {
                Poll::Ready(Signal::Insert(Bytes::from_static(PING)))
            }
            Pause::End(at) if self.pauses > u32::from(at) => Poll::Ready(Signal::End(self.last_words())),
            _ => Poll::Pending,
        }
    }

    fn end(&mut self, end: End<()>) -> Bytes {
        match end {
            End::Clean => Bytes::new(),
            End::Failed(()) => self.last_words(),
        }
    }
}

fuzz_target!(|input: Input| {
    let mut steps = VecDeque::new();
    for (number, piece) in input.pieces.iter().enumerate() {
        if input.pauses >> (number % 32) & 1 == 1 {
            steps.push_back(None);
        }
        steps.push_back(Some(Bytes::copy_from_slice(piece)));
    }
    let polls = 10 * steps.len() + 100;
    let (input, seen, dropped) = (Rc::new(input), Rc::<Seen>::default(), Rc::<Cell<bool>>::default());
    let source = Source { steps, fails: input.fails, dropped: dropped.clone() };
    let watch = Follow { input: input.clone(), seen: seen.clone(), frames: 0, pauses: 0, pinged: false };
    let mut body = Box::pin(RelayBody::new(source, watch));
    let mut context = Context::from_waker(Waker::noop());
    let mut out = vec![];
    let mut ended = false;
    for _ in 0..polls {
        let frame: Option<Result<Frame<Bytes>, Infallible>> = match body.as_mut().poll_frame(&mut context) {
            Poll::Pending => continue,
            Poll::Ready(frame) => frame,
        };
        let Some(frame) = frame else {
            ended = true;
            break;
        };
        let data = frame.unwrap_or_else(|never| match never {}).into_data().expect("data");
        assert!(!data.is_empty(), "an empty frame");
        out.extend_from_slice(&data);
    }
    assert!(ended && body.is_end_stream(), "it has no end");
    assert!(dropped.get(), "the source is kept after the end");
    let mut kept = seen.kept.take();
    if seen.spoke.get() {
        kept.push(b"the last words".to_vec());
    }
    // A second byte order mark is no byte order mark: the line feed says so to the yardstick.
    assert_eq!(events(&[b"\n", out.as_slice()].concat()), kept, "what the reader sees is what the watch let pass");
    let is_plain = input.leave_out == 0 && !seen.spoke.get() && !seen.closed.get() && input.pause != Pause::Ping;
    if is_plain {
        let rest = out.strip_prefix(without_bom(input.pieces.whole())).expect("bytes out are bytes in");
        assert!(matches!(rest, b"" | b"\n" | b"\n\n"), "{rest:?}");
    }
});
