//! The relay as an HTTP body, with a source and a watch that follow a script.

use std::{
    cell::Cell,
    collections::VecDeque,
    ops::ControlFlow,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use sse::{End, Event, RelayBody, Signal, Verdict, Watch};

enum Step {
    Data(&'static [u8]),
    Silence,
    Fail,
}
use Step::{Data, Fail, Silence};

struct Source {
    steps: VecDeque<Step>,
    dropped: Rc<Cell<bool>>,
}

impl Body for Source {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self.steps.pop_front() {
            Some(Data(bytes)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(bytes))))),
            Some(Silence) => Poll::Pending,
            Some(Fail) => Poll::Ready(Some(Err("reset"))),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.dropped.set(true);
    }
}

#[derive(Default)]
struct Script {
    signals: VecDeque<Signal>,
    /// Ends the stream with the frame of this number.
    stop_at: Option<usize>,
    frames: usize,
}

impl Watch<&'static str> for Script {
    fn frame(&mut self, _: usize) -> ControlFlow<Bytes> {
        self.frames += 1;
        if self.stop_at == Some(self.frames) {
            return ControlFlow::Break(Bytes::from_static(b"data: too long\n\n"));
        }
        ControlFlow::Continue(())
    }

    fn event(&mut self, event: Event<'_>) -> Verdict {
        match event.data().as_deref() {
            Some(b"[DONE]") => Verdict::Last,
            Some(b"drop") => Verdict::Drop,
            _ => Verdict::Keep,
        }
    }

    fn poll_signal(&mut self, _: &mut Context<'_>, between: bool) -> Poll<Signal> {
        assert!(between);
        self.signals.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn end(&mut self, end: End<&'static str>) -> Bytes {
        match end {
            End::Clean => Bytes::new(),
            End::Failed(error) => format!("data: {error}\n\n").into(),
        }
    }
}

/// The chunks that come out, and whether the source was dropped by the end.
fn play(steps: impl IntoIterator<Item = Step>, script: Script) -> (Vec<Bytes>, bool) {
    let dropped = Rc::new(Cell::new(false));
    let source = Source { steps: steps.into_iter().collect(), dropped: dropped.clone() };
    let mut body = Box::pin(RelayBody::new(source, script));
    let mut context = Context::from_waker(Waker::noop());
    let mut seen = vec![];
    for _ in 0..100 {
        match body.as_mut().poll_frame(&mut context) {
            Poll::Pending => {}
            Poll::Ready(Some(frame)) => seen.extend(frame.map(|frame| frame.into_data().ok()).ok().flatten()),
            Poll::Ready(None) => {
                assert!(body.is_end_stream());
                return (seen, dropped.get());
            }
        }
    }
    panic!("no end: {seen:?}");
}

fn out(bytes: &'static str) -> Bytes {
    Bytes::from_static(bytes.as_bytes())
}

#[test]
fn what_is_ready_at_once_goes_out_as_one_chunk() {
    let steps = [Data(b"data: 1\n\n"), Data(b"data: 2\n\ndata: 3"), Silence, Data(b"\n\n"), Silence];
    let (seen, _) = play(steps, Script::default());
    assert_eq!(seen, [out("data: 1\n\ndata: 2\n\n"), out("data: 3\n\n")]);
}

#[test]
fn heartbeats_are_inserted_while_the_source_is_silent() {
    let signals = [Signal::Insert(Bytes::from_static(b": ping\n\n"))].into();
    let steps = [Data(b"data: 1\n\ndata: par"), Silence, Silence, Silence, Data(b"tial\n\n")];
    let (seen, _) = play(steps, Script { signals, ..Script::default() });
    assert_eq!(seen, [out("data: 1\n\n"), out(": ping\n\n"), out("data: partial\n\n")]);
}

#[test]
fn a_source_that_fails_ends_in_last_words_without_the_torn_event() {
    let (seen, dropped) = play([Data(b"data: 1\n\ndata: {\"to"), Fail], Script::default());
    assert_eq!(seen, [out("data: 1\n\ndata: reset\n\n")]);
    assert!(dropped);
}

#[test]
fn a_signal_ends_the_stream_and_drops_the_source() {
    let signals = [Signal::End(Bytes::from_static(b"data: bye\n\n"))].into();
    let (seen, dropped) =
        play([Data(b"data: 1\n\n"), Silence, Silence], Script { signals, ..Script::default() });
    assert_eq!(seen, [out("data: 1\n\n"), out("data: bye\n\n")]);
    assert!(dropped);
}

#[test]
fn a_source_that_never_pauses_can_be_stopped() {
    let steps = std::iter::repeat_with(|| Data(b"data: x\n\n")).take(10_000);
    let (seen, dropped) = play(steps, Script { stop_at: Some(3), ..Script::default() });
    assert_eq!(seen, [out("data: x\n\ndata: x\n\ndata: too long\n\n")]);
    assert!(dropped);
}

#[test]
fn after_the_last_event_only_the_end_is_waited_for() {
    // Until the watch has waited enough ...
    let signals = [Signal::End(Bytes::from_static(b"data: not shown\n\n"))].into();
    let (seen, dropped) = play(
        [Data(b"data: [DONE]\n\ndata: 2\n\n"), Silence, Silence],
        Script { signals, ..Script::default() },
    );
    assert_eq!(seen, [out("data: [DONE]\n\n")], "nothing follows it");
    assert!(dropped);
    // ... or the source will not stop talking.
    let endless = std::iter::repeat_with(|| Data(&[b'x'; 1024])).take(10_000);
    let (seen, dropped) = play(std::iter::once(Data(b"data: [DONE]\n\n")).chain(endless), Script::default());
    assert_eq!(seen, [out("data: [DONE]\n\n")]);
    assert!(dropped);
}

#[test]
fn an_event_without_its_line_ends_is_completed_at_a_clean_end() {
    for (last, whole) in [("data: 1", "data: 1\n\n"), ("data: 1\n", "data: 1\n\n"), ("data: drop", "")] {
        let (seen, _) = play([Data(last.as_bytes())], Script::default());
        assert_eq!(seen.concat(), whole.as_bytes());
    }
}
