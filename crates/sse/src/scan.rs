//! Where events end.

use memchr::memchr2;

/// Finds the ends of events in a stream that comes in pieces. Keeps three bits, whatever the size of an event.
///
/// An event ends with an empty line, and a line with LF, CR or CRLF.
#[derive(Debug, Clone)]
pub struct Scanner {
    /// Nothing of the current event has been seen.
    boundary: bool,
    /// Nothing of the current line has been seen.
    line_start: bool,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
}

/// What [`Scanner::step`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An event ends before this index. Go on with the bytes from there.
    End(usize),
    /// The first byte is an LF that still belongs to the event before, which ended with a CR at the end of the last piece.
    /// Go on with the second byte.
    LateLineFeed,
    /// No event ends in here; all bytes are taken.
    More,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { boundary: true, line_start: true, after_cr: false }
    }
}

impl Scanner {
    /// Takes bytes up to the next end of an event.
    pub fn step(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                at += 1;
                if self.boundary {
                    return Step::LateLineFeed;
                }
                continue;
            }
            if self.line_start {
                if byte == b'\n' {
                    self.boundary = true;
                    return Step::End(at + 1);
                }
                if byte == b'\r' {
                    self.boundary = true;
                    // Not waited for: an LF may never come, and the event is complete without it.
                    return match bytes.get(at + 1) {
                        Some(b'\n') => Step::End(at + 2),
                        next => {
                            self.after_cr = next.is_none();
                            Step::End(at + 1)
                        }
                    };
                }
                self.line_start = false;
                self.boundary = false;
            }
            let Some(end) = memchr2(b'\n', b'\r', &bytes[at..]) else { return Step::More };
            at += end;
            self.after_cr = bytes[at] == b'\r';
            self.line_start = true;
            at += 1;
        }
        Step::More
    }

    /// True when the bytes so far end with an event.
    pub fn at_boundary(&self) -> bool {
        self.boundary
    }

    /// The line ends that are missing to complete the event that has begun.
    pub fn terminator(&self) -> &'static [u8] {
        match (self.boundary, self.line_start, self.after_cr) {
            (true, ..) => b"",
            (false, true, false) => b"\n",
            // After a CR the first LF only completes its line.
            (false, ..) => b"\n\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ends in `pieces`, as offsets from the start; a late line feed moves the last one.
    fn ends(pieces: &[&[u8]]) -> Vec<usize> {
        let (mut scanner, mut found, mut offset) = (Scanner::default(), vec![], 0);
        for piece in pieces {
            let mut at = 0;
            loop {
                match scanner.step(&piece[at..]) {
                    Step::End(n) => {
                        at += n;
                        found.push(offset + at);
                    }
                    Step::LateLineFeed => {
                        at += 1;
                        *found.last_mut().unwrap() += 1;
                    }
                    Step::More => break,
                }
            }
            offset += piece.len();
        }
        found
    }

    #[test]
    fn every_kind_of_line_end_ends_events() {
        assert_eq!(ends(&[b"data: a\n\ndata: b\n\n"]), [9, 18]);
        assert_eq!(ends(&[b"data: a\r\rdata: b\r\r"]), [9, 18]);
        assert_eq!(ends(&[b"data: a\r\n\r\ndata: b\r\n\r\n"]), [11, 22]);
        assert_eq!(ends(&[b"a\r\n\nb\n\r\nc\r\r\n"]), [4, 8, 12]);
        assert_eq!(ends(&[b"a\nb\nc\n"]), [0_usize; 0], "no empty line, no event");
    }

    #[test]
    fn a_carriage_return_at_the_end_of_a_piece_is_enough() {
        assert_eq!(ends(&[b"a\r\r"]), [3]);
        assert_eq!(ends(&[b"a\r\r", b"\n", b"b\n\n"]), [4, 7]);
        assert_eq!(ends(&[b"a\r\n\r", b"b\n\n"]), [4, 7]);
        assert_eq!(ends(&[b"a\r", b"\n", b"\r", b"\n", b"\n"]), [5, 6], "the last one is an empty event");
    }

    #[test]
    fn the_terminator_completes_whatever_has_begun() {
        for begun in
            ["", "d", "data: a", "data: a\n", "data: a\r", "data: a\r\n", "data: a\n\n", "data: a\r\r"]
        {
            let mut scanner = Scanner::default();
            if let Step::End(n) = scanner.step(begun.as_bytes()) {
                assert_eq!(n, begun.len());
            }
            let missing = scanner.terminator();
            let whole = [begun.as_bytes(), missing].concat();
            if begun.is_empty() {
                assert!(missing.is_empty());
            } else {
                assert_eq!(ends(&[&whole]), [whole.len()], "{begun:?}");
            }
        }
    }
}
