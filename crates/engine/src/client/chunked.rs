//! The chunked transfer coding (RFC 9112, section 7.1), decoded in place.

use std::io;

use super::head::invalid;

/// Chunk extensions and trailers mean nothing here, and may not be long.
const MAX_SKIPPED: usize = 16 << 10;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    skipped: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a length: what it is so far, and whether there was a digit.
    Length {
        value: u64,
        any: bool,
    },
    /// Behind a length, before its carriage return.
    Extension {
        length: u64,
    },
    LengthEnd {
        length: u64,
    },
    /// So much is still to come.
    Data {
        left: u64,
    },
    DataReturn,
    DataEnd,
    /// At the begin of a line behind the last chunk.
    Trailers,
    Trailer,
    TrailerEnd,
    LastEnd,
    Over,
}

impl Default for State {
    fn default() -> Self {
        Self::Length { value: 0, any: false }
    }
}

impl Chunked {
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Takes what arrived, up to what is malformed: how many bytes of it belong to the body, which are moved together at its begin; and how many were
    /// looked at, which is all but what lies behind the body's end.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) -> io::Result<(usize, usize)> {
        let (mut at, mut to) = (0, 0);
        while at < bytes.len() && self.state != State::Over {
            if let State::Data { left } = &mut self.state {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                bytes.copy_within(at..at + count, to);
                (at, to, *left) = (at + count, to + count, *left - count as u64);
                if *left == 0 {
                    self.state = State::DataReturn;
                }
            } else {
                match self.byte(bytes[at]) {
                    Ok(state) => self.state = state,
                    // What came before it is good, wherever the bytes were cut; this one is looked at again.
                    Err(_) if to > 0 => return Ok((to, at)),
                    Err(error) => return Err(error),
                }
                at += 1;
            }
        }
        Ok((to, at))
    }

    /// The state after a byte that is no data.
    fn byte(&mut self, byte: u8) -> io::Result<State> {
        Ok(match (self.state, byte) {
            (State::Length { value, .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if value >> 60 != 0 {
                    return Err(invalid("a chunk is too long"));
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                State::Length { value: value << 4 | u64::from(digit), any: true }
            }
            (State::Length { value, any: true }, b'\r') => State::LengthEnd { length: value },
            (State::Length { value, any: true }, b';' | b' ' | b'\t') => State::Extension { length: value },
            (State::Extension { length }, b'\r') => State::LengthEnd { length },
            (state @ State::Extension { .. }, _) if byte != b'\n' => self.skip(state)?,
            (State::LengthEnd { length: 0 } | State::TrailerEnd, b'\n') => State::Trailers,
            (State::LengthEnd { length }, b'\n') => State::Data { left: length },
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => State::default(),
            (State::Trailers, b'\r') => State::LastEnd,
            (State::Trailer, b'\r') => State::TrailerEnd,
            (State::Trailers | State::Trailer, _) if byte != b'\n' => self.skip(State::Trailer)?,
            (State::LastEnd, b'\n') => State::Over,
            _ => return Err(invalid("the answer's chunks are malformed")),
        })
    }

    fn skip(&mut self, state: State) -> io::Result<State> {
        self.skipped += 1;
        if self.skipped > MAX_SKIPPED {
            return Err(invalid("the answer's chunks have too much beside them"));
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is in the pieces, and what is behind the end.
    fn decode(pieces: &[&[u8]]) -> io::Result<(Vec<u8>, Vec<u8>, bool)> {
        let (mut chunked, mut body, mut rest) = (Chunked::default(), Vec::new(), Vec::new());
        for piece in pieces {
            let mut piece = piece.to_vec();
            let (data, seen) = chunked.decode(&mut piece)?;
            body.extend_from_slice(&piece[..data]);
            if seen < piece.len() && !chunked.is_over() {
                chunked.decode(&mut piece[seen..])?;
            }
            rest.extend_from_slice(&piece[seen..]);
        }
        Ok((body, rest, chunked.is_over()))
    }

    #[test]
    fn a_body_is_the_same_wherever_it_is_cut() {
        let text = b"4;name=value\r\nWiki\r\nB \r\npedia in \n\n\r\n00000\r\nTrailer: x\r\nAnother: y\r\n\r\nHTTP/1.1";
        for one in 0..=text.len() {
            for two in one..=text.len() {
                let (body, rest, over) = decode(&[&text[..one], &text[one..two], &text[two..]]).unwrap();
                assert_eq!(
                    (&body[..], &rest[..], over),
                    (&b"Wikipedia in \n\n"[..], &b"HTTP/1.1"[..], true),
                    "{one} {two}"
                );
            }
        }
        for cut in 0..text.len() - b"HTTP/1.1".len() {
            assert!(!decode(&[&text[..cut]]).unwrap().2, "{cut}: it is not over");
        }
    }

    #[test]
    fn what_came_before_something_malformed_is_still_given_out() {
        let mut text = *b"9\r\ndata: 1\n\n\r\nXX";
        let mut chunked = Chunked::default();
        let (data, seen) = chunked.decode(&mut text).unwrap();
        assert_eq!((&text[..data], &text[seen..]), (&b"data: 1\n\n"[..], &b"XX"[..]));
        assert!(chunked.decode(&mut text[seen..]).is_err());
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            " 4\r\n",
            "4\n",
            "4\rx",
            "4\r\nWikix",
            "4\r\nWiki\rx",
            "0\r\n\rx",
            "0\r\n\n",
            "0\r\nx\n",
            "4;x\n",
            "11111111111111111\r\n",
        ] {
            assert!(decode(&[text.as_bytes()]).is_err(), "{text:?}");
        }
        let long = format!("4;{}", "x".repeat(MAX_SKIPPED + 1));
        assert!(decode(&[long.as_bytes()]).is_err());
        let many = format!("0\r\n{}", "x: y\r\n".repeat(MAX_SKIPPED));
        assert!(decode(&[many.as_bytes()]).is_err());
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_out(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..8), cut in 1_usize..50) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let pieces: Vec<&[u8]> = text.chunks(cut).collect();
            let (body, rest, over) = decode(&pieces).unwrap();
            prop_assert_eq!((body, rest, over), (chunks.concat(), Vec::new(), true));
        }

        #[test]
        fn nothing_makes_it_panic(
            bytes in proptest::collection::vec(proptest::sample::select(b"00159aF\r\r\r\n\n\n; \tx".to_vec()), 0..200),
            cut in 1_usize..50,
        ) {
            let _ = decode(&bytes.chunks(cut).collect::<Vec<_>>());
        }
    }
}
