//! What the relay guarantees, for every way of cutting its input.

mod reference;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use sse::{Event, MAX_EVENT, Relay, Verdict};

use reference::reference;

/// What came out, and what the watch saw.
#[derive(Debug, PartialEq)]
struct Run {
    out: Vec<u8>,
    events: Vec<Vec<u8>>,
}

fn run(pieces: &[&[u8]], judge: impl Fn(&Event<'_>) -> Verdict) -> Run {
    let mut relay = Relay::default();
    let mut run = Run { out: vec![], events: vec![] };
    let mut watch = |event: Event<'_>| {
        run.events.extend(event.data().map(std::borrow::Cow::into_owned));
        judge(&event)
    };
    for piece in pieces {
        relay.push(Bytes::copy_from_slice(piece), &mut watch);
        while let Some(bytes) = relay.pop() {
            run.out.extend_from_slice(&bytes);
        }
    }
    relay.finish(&mut watch);
    while let Some(bytes) = relay.pop() {
        run.out.extend_from_slice(&bytes);
    }
    run
}

fn keep(_: &Event<'_>) -> Verdict {
    Verdict::Keep
}

/// Cuts at the given places, which may repeat.
fn cut<'a>(bytes: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|p| p.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|w| &bytes[w[0]..w[1]]).collect()
}

/// Streams that look like streams: fields, comments, CJK and emoji, all line ends, empty events.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => "data: ?(\\{\"a\":\"[a-z語😀é]{0,12}\"\\})?".prop_map(String::into_bytes),
        1 => Just(b"event: delta".to_vec()),
        1 => Just(b": comment".to_vec()),
        1 => Just(b"id: 7".to_vec()),
        1 => Just(b"data".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
        12 => Just(b"\n".to_vec()),
        4 => Just(b"\r\n".to_vec()),
        4 => Just(b"\r".to_vec()),
        6 => Just(b"\n\n".to_vec()),
    ];
    (any::<bool>(), prop::collection::vec(piece, 0..40)).prop_map(|(bom, pieces)| {
        let mut bytes = if bom { b"\xEF\xBB\xBF".to_vec() } else { vec![] };
        bytes.extend(pieces.concat());
        bytes
    })
}

fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn bytes_in_are_bytes_out_and_events_are_the_same_for_any_cut(
        bytes in stream(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let got = run(&cut(&bytes, &places), keep);
        let expected = without_bom(&bytes);
        prop_assert!(got.out.starts_with(expected), "{:?} is not {:?}", got.out, expected);
        prop_assert!(matches!(&got.out[expected.len()..], b"" | b"\n" | b"\n\n"));
        prop_assert_eq!(got.events, reference(&bytes));
    }

    #[test]
    fn single_bytes_are_as_good_as_one_piece(bytes in stream()) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(run(&single, keep), run(&[&bytes], keep));
    }

    #[test]
    fn dropped_events_leave_no_trace_for_any_cut(
        bytes in stream(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let judge = |event: &Event<'_>| if event.parts().has_data() { Verdict::Keep } else { Verdict::Drop };
        let got = run(&cut(&bytes, &places), judge);
        prop_assert_eq!(&got.out, &run(&[&bytes], judge).out);
        // What is left is a stream with just the events that were kept, and dropping again drops nothing.
        let kept: Vec<_> = reference(&bytes).into_iter().filter(|data| !data.iter().all(|b| *b == b'\n')).collect();
        let left: Vec<_> = reference(&got.out).into_iter().filter(|data| !data.iter().all(|b| *b == b'\n')).collect();
        prop_assert_eq!(left, kept);
        prop_assert_eq!(run(&[&got.out], judge).out, got.out);
    }

    #[test]
    fn heartbeats_between_chunks_change_no_event(
        bytes in stream(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let mut relay = Relay::default();
        let mut out = vec![];
        for piece in cut(&bytes, &places) {
            relay.push(Bytes::copy_from_slice(piece), &mut |_| Verdict::Keep);
            prop_assert!(relay.insert(Bytes::from_static(b": ping\n\n")));
            while let Some(bytes) = relay.pop() {
                out.extend_from_slice(&bytes);
            }
        }
        relay.finish(&mut |_| Verdict::Keep);
        out.extend(std::iter::from_fn(|| relay.pop()).flatten());
        prop_assert_eq!(reference(&out), reference(&bytes));
    }

    #[test]
    fn an_event_of_any_size_passes_whatever_the_limit(
        sizes in prop::collection::vec(0_usize..300, 1..8),
        limit in 1_usize..100,
        piece in 1_usize..64,
    ) {
        let events = sizes.iter().map(|size| format!("data: {}\n\n", "x".repeat(*size)));
        let bytes: Vec<u8> = events.collect::<String>().into_bytes();
        let mut relay = Relay::with_limit(limit);
        let mut out = vec![];
        for piece in bytes.chunks(piece) {
            relay.push(Bytes::copy_from_slice(piece), &mut |_| Verdict::Keep);
            prop_assert!(relay.held() <= limit);
            out.extend(std::iter::from_fn(|| relay.pop()).flatten());
        }
        prop_assert_eq!(out, bytes);
    }
}

#[test]
fn every_cut_of_a_stream_with_cjk_and_emoji_gives_the_same() {
    let bytes = "\u{feff}data: {\"c\":\"漢字😀é\"}\n\nevent: x\r\ndata: 二\r\ndata: 🎉\r\n\r\n: note\r\rdata: [DONE]\n\n";
    let whole = run(&[bytes.as_bytes()], keep);
    assert_eq!(whole.out, without_bom(bytes.as_bytes()));
    assert_eq!(whole.events.len(), 3);
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let b = bytes.as_bytes();
            assert_eq!(
                run(&[&b[..first], &b[first..second], &b[second..]], keep),
                whole,
                "cut at {first} and {second}"
            );
        }
    }
}

#[test]
fn a_chunk_that_ends_with_an_event_is_not_copied() {
    let chunk = Bytes::from(b"data: 1\n\ndata: 2\n\n".to_vec());
    let mut relay = Relay::default();
    relay.push(chunk.clone(), &mut |_| Verdict::Keep);
    let out = relay.pop().unwrap();
    assert_eq!((out.as_ptr(), out.len()), (chunk.as_ptr(), chunk.len()));
}

#[test]
fn nothing_after_the_last_event_goes_out() {
    let last = |event: &Event<'_>| {
        if event.data().as_deref() == Some(b"[DONE]") { Verdict::Last } else { Verdict::Keep }
    };
    let bytes = b"data: 1\n\ndata: [DONE]\n\ndata: 2\n\n";
    for at in 0..bytes.len() {
        assert_eq!(
            run(&[&bytes[..at], &bytes[at..]], last).out,
            b"data: 1\n\ndata: [DONE]\n\n",
            "cut at {at}"
        );
    }
}

#[test]
fn a_torn_event_is_dropped_and_a_long_one_is_closed() {
    let mut relay = Relay::with_limit(16);
    relay.push(Bytes::from_static(b"data: 1\n\ndata: {\"to"), &mut |_| Verdict::Keep);
    relay.abort();
    assert!(relay.insert(Bytes::from_static(b"data: error\n\n")));
    assert_eq!(relay.pop().unwrap(), "data: 1\n\ndata: error\n\n");

    let mut relay = Relay::with_limit(16);
    relay.push(Bytes::from_static(b"data: a very long line"), &mut |_| Verdict::Keep);
    assert!(!relay.insert(Bytes::from_static(b": ping\n\n")), "the reader has a part of an event");
    relay.abort();
    assert!(relay.insert(Bytes::from_static(b"data: error\n\n")));
    assert_eq!(relay.pop().unwrap(), "data: a very long line\n\ndata: error\n\n");
}

#[test]
fn an_event_that_the_input_ended_in_is_known_as_cut() {
    let mut cut = vec![];
    let mut relay = Relay::default();
    relay.push(Bytes::from_static(b"data: 1\n\ndata: {\"to"), &mut |event| {
        cut.push(event.is_cut());
        Verdict::Keep
    });
    relay.finish(&mut |event| {
        cut.push(event.is_cut());
        Verdict::Drop
    });
    assert_eq!(cut, [false, true]);
    assert_eq!(relay.pop().unwrap(), "data: 1\n\n");
    assert_eq!(relay.pop(), None);
}

#[test]
fn a_line_of_10_mib_and_256_mib_without_a_line_end_pass_in_flat_memory() {
    let block = Bytes::from(vec![b'x'; 64 << 10]);
    for blocks in [160, 4_096] {
        let mut relay = Relay::default();
        let mut watched = 0;
        let mut out = 0;
        relay.push(Bytes::from_static(b"data: "), &mut |_| Verdict::Keep);
        for _ in 0..blocks {
            relay.push(block.clone(), &mut |_| {
                watched += 1;
                Verdict::Keep
            });
            assert!(relay.held() <= MAX_EVENT);
            out += std::iter::from_fn(|| relay.pop()).map(|b| b.len()).sum::<usize>();
            assert_eq!(relay.waiting(), 0);
        }
        relay.push(Bytes::from_static(b"\n\ndata: after\n\n"), &mut |event| {
            assert_eq!(event.data().unwrap(), &b"after"[..], "in step again");
            Verdict::Keep
        });
        out += std::iter::from_fn(|| relay.pop()).map(|b| b.len()).sum::<usize>();
        assert_eq!(out, 6 + blocks * block.len() + 15);
        assert_eq!(watched, 0, "the long event passes unwatched");
    }
}

#[test]
fn a_mebibyte_in_single_bytes_is_held_in_about_a_mebibyte() {
    let mut relay = Relay::default();
    let mut source = BytesMut::zeroed(1 << 19);
    while !source.is_empty() {
        relay.push(source.split_to(1).freeze(), &mut |_| Verdict::Keep);
    }
    assert_eq!(relay.held(), 1 << 19);
    relay.push(Bytes::from_static(b"\n\n"), &mut |_| Verdict::Keep);
    assert_eq!(relay.pop().unwrap().len(), (1 << 19) + 2);
}
