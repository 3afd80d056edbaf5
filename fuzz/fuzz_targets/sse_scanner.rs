//! The scanner finds the same ends of events however a stream is cut, and the events between them say what the standard says.

#![no_main]

use fuzz::{Pieces, events};
use libfuzzer_sys::fuzz_target;
use sse::{Event, Scanner, Step};

/// Where events end, as offsets from the start; the line feed of a CRLF that was cut belongs to the event before it.
fn ends<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<usize>, Scanner) {
    let (mut scanner, mut found, mut offset) = (Scanner::default(), vec![], 0);
    for piece in pieces {
        let mut at = 0;
        loop {
            match scanner.step(&piece[at..]) {
                Step::End(length) => {
                    assert!(length > 0, "no progress");
                    at += length;
                    found.push(offset + at);
                }
                Step::LateLineFeed => {
                    at += 1;
                    *found.last_mut().expect("an event ended before") += 1;
                }
                Step::More => break,
            }
        }
        offset += piece.len();
    }
    (found, scanner)
}

fuzz_target!(|input: Pieces| {
    let stream = input.whole();
    // The scanner does not know byte order marks: those are the relay's.
    if stream.starts_with(b"\xEF\xBB\xBF") {
        return;
    }
    let (found, scanner) = ends(input.iter());
    assert_eq!(found, ends(std::iter::once(stream)).0, "the cut decides where events end");
    assert_eq!(found, ends(stream.chunks(1)).0, "single bytes decide where events end");

    let mut said = vec![];
    let mut begin = 0;
    for end in found {
        said.extend(Event::new(&stream[begin..end]).data().map(|data| data.into_owned()));
        begin = end;
    }
    assert_eq!(scanner.at_boundary(), begin == stream.len());
    let last = [&stream[begin..], scanner.terminator()].concat();
    said.extend(Event::new(&last).data().map(|data| data.into_owned()));
    assert_eq!(said, events(stream));
});
