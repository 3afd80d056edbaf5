//! The relay forwards byte for byte, holds no more than its limit, and lets heartbeats in without changing an event.

#![no_main]

use bytes::Bytes;
use fuzz::{Pieces, events, without_bom};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use sse::{Event, Relay, Verdict};

#[derive(Debug, Arbitrary)]
struct Input {
    limit: u16,
    /// Every so many events one is left out; 0 for none.
    leave_out: u8,
    heartbeats: bool,
    ending: Ending,
    pieces: Pieces,
}

#[derive(Debug, Clone, Copy, PartialEq, Arbitrary)]
enum Ending {
    Clean,
    Broken,
    /// With the event of this number.
    Last(u8),
}

#[derive(Default)]
struct Run {
    out: Vec<u8>,
    seen: usize,
    kept: Vec<Vec<u8>>,
}

impl Run {
    fn take(&mut self, relay: &mut Relay) {
        while let Some(bytes) = relay.pop() {
            assert!(!bytes.is_empty(), "an empty frame");
            self.out.extend_from_slice(&bytes);
        }
        assert_eq!(relay.waiting(), 0);
    }
}

fn run(input: &Input, limit: usize, heartbeats: bool) -> Run {
    let mut run = Run::default();
    let mut relay = Relay::with_limit(limit);
    let (mut seen, mut kept) = (0, vec![]);
    let mut watch = |event: Event<'_>| {
        seen += 1;
        if input.leave_out > 0 && seen % usize::from(input.leave_out) == 0 {
            return Verdict::Drop;
        }
        kept.extend(event.data().map(|data| data.into_owned()));
        match input.ending {
            Ending::Last(number) if seen > usize::from(number) => Verdict::Last,
            _ => Verdict::Keep,
        }
    };
    for piece in input.pieces.iter() {
        relay.push(Bytes::copy_from_slice(piece), &mut watch);
        assert!(relay.held() <= limit, "{} bytes are held", relay.held());
        if heartbeats {
            let between = relay.at_boundary();
            assert_eq!(relay.insert(Bytes::from_static(b": ping\n\n")), between);
        }
        run.take(&mut relay);
    }
    match input.ending {
        Ending::Broken => relay.abort(),
        _ => relay.finish(&mut watch),
    }
    assert!(relay.is_closed() && relay.at_boundary());
    run.take(&mut relay);
    (run.seen, run.kept) = (seen, kept);
    run
}

/// The events in what went out. A second byte order mark is no byte order mark: the line feed says so to the yardstick.
fn seen_in(out: &[u8]) -> Vec<Vec<u8>> {
    events(&[b"\n", out].concat())
}

fuzz_target!(|input: Input| {
    let stream = input.pieces.whole();
    // With room for every event.
    let plain = run(&input, stream.len(), false);
    let expected = without_bom(stream);
    if input.leave_out == 0 && input.ending == Ending::Clean {
        let rest = plain.out.strip_prefix(expected).expect("bytes out are bytes in");
        assert!(matches!(rest, b"" | b"\n" | b"\n\n"), "{rest:?}");
        assert_eq!(plain.kept, events(stream));
    }
    if input.leave_out == 0 && input.ending == Ending::Broken {
        assert!(expected.starts_with(&plain.out), "bytes out are the beginning of bytes in");
    }
    assert_eq!(seen_in(&plain.out), plain.kept, "what the reader sees is what the watch let pass");
    if input.heartbeats {
        let beating = run(&input, stream.len(), true);
        assert_eq!((beating.seen, &beating.kept), (plain.seen, &plain.kept));
        assert_eq!(seen_in(&beating.out), plain.kept, "a heartbeat changed an event");
    }
    // With little room, long events pass unwatched; what goes out stays in order, and the end is an end.
    let tight = run(&input, usize::from(input.limit), input.heartbeats);
    if input.leave_out == 0 && input.ending == Ending::Clean && !input.heartbeats {
        assert_eq!(tight.out, plain.out);
    }
});
