//! Forwards whole events.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::{Event, Scanner, Step};

/// An event longer than this many bytes is passed through unwatched, unless it arrives in one piece.
pub const MAX_EVENT: usize = 1 << 20;
/// Small pieces that wait together go out as one, up to this many bytes.
const JOIN: usize = 16 << 10;
const BOM: &[u8; 3] = b"\xEF\xBB\xBF";

/// What happens with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is forwarded.
    Keep,
    /// It is left out.
    Drop,
    /// It is forwarded, and nothing after it.
    Last,
}

/// Takes chunks, gives chunks; see the crate's documentation for what it guarantees.
#[derive(Debug)]
pub struct Relay {
    scanner: Scanner,
    limit: usize,
    /// So many bytes of a byte order mark were seen; `None` once that is decided.
    bom: Option<usize>,
    held: Held,
    /// The current event is too long to be held: the reader has a part of it.
    passing: bool,
    /// What precedes a late line feed did not go out last, so neither does it.
    swallow_lf: bool,
    closed: bool,
    out: VecDeque<Bytes>,
    out_len: usize,
}

impl Default for Relay {
    fn default() -> Self {
        Self::with_limit(MAX_EVENT)
    }
}

impl Relay {
    /// Holds at most about `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            scanner: Scanner::default(),
            limit,
            bom: Some(0),
            held: Held::default(),
            passing: false,
            swallow_lf: false,
            closed: false,
            out: VecDeque::new(),
            out_len: 0,
        }
    }

    /// Takes a chunk, and shows `watch` each event that it completes. After the last event ([`Verdict::Last`], [`Self::finish`],
    /// [`Self::abort`]) chunks are ignored.
    pub fn push(&mut self, mut chunk: Bytes, watch: &mut impl FnMut(Event<'_>) -> Verdict) {
        if let Some(seen) = self.bom {
            let missing = &BOM[seen..];
            let same = missing.iter().zip(&chunk).take_while(|(a, b)| a == b).count();
            if same == missing.len() {
                chunk.advance(same);
            } else if same == chunk.len() {
                self.bom = Some(seen + same);
                return;
            } else if seen > 0 {
                self.scan(Bytes::from_static(&BOM[..seen]), watch);
            }
            self.bom = None;
        }
        self.scan(chunk, watch);
    }

    fn scan(&mut self, chunk: Bytes, watch: &mut impl FnMut(Event<'_>) -> Verdict) {
        // What is decided and not yet put out begins at `kept`, the current event at `begin`; scanned is up to `at`.
        let (mut kept, mut begin, mut at) = (0, 0, 0);
        while !self.closed {
            match self.scanner.step(&chunk[at..]) {
                Step::More => break,
                Step::LateLineFeed => {
                    at += 1;
                    begin = at;
                    if self.swallow_lf {
                        kept = at;
                    }
                }
                Step::End(length) => {
                    at += length;
                    if std::mem::take(&mut self.passing) {
                        self.swallow_lf = false;
                    } else {
                        let part = &chunk[begin..at];
                        let verdict = watch(Event::new(self.held.complete(part)));
                        if verdict == Verdict::Drop {
                            self.put(chunk.slice(kept..begin));
                            self.held.clear();
                            kept = at;
                        } else if !self.held.is_empty() {
                            let whole = self.held.take();
                            self.put(whole);
                            kept = at;
                        }
                        self.swallow_lf = verdict == Verdict::Drop;
                        self.closed = verdict == Verdict::Last;
                    }
                    begin = at;
                }
            }
        }
        if self.closed {
            self.put(chunk.slice(kept..begin));
        } else if self.passing || begin == chunk.len() {
            self.put(if kept == 0 { chunk } else { chunk.slice(kept..) });
        } else {
            self.put(chunk.slice(kept..begin));
            self.held.add(chunk.slice(begin..));
            if self.held.len() > self.limit {
                let part = self.held.take();
                self.put(part);
                self.passing = true;
            }
        }
    }

    /// The input ended well. A last event without its line ends gets them.
    pub fn finish(&mut self, watch: &mut impl FnMut(Event<'_>) -> Verdict) {
        if let Some(seen) = self.bom.take() {
            self.scan(Bytes::from_static(&BOM[..seen]), watch);
        }
        if self.closed || self.scanner.at_boundary() {
            self.closed = true;
            return;
        }
        let missing = Bytes::from_static(self.scanner.terminator());
        if self.passing {
            self.put(missing);
        } else if watch(Event::cut(self.held.complete(&missing))) == Verdict::Drop {
            self.held.clear();
        } else {
            let whole = self.held.take();
            self.put(whole);
        }
        self.closed = true;
    }

    /// The input ended badly: a torn event is dropped. If its beginning is out already, it is closed, so that something can
    /// follow.
    pub fn abort(&mut self) {
        if self.passing && !self.closed {
            self.put(Bytes::from_static(self.scanner.terminator()));
        }
        self.held.clear();
        self.closed = true;
    }

    /// Puts bytes, which should be whole events or comments, between two events. False when that is not possible because the
    /// reader has a part of a long event.
    pub fn insert(&mut self, bytes: Bytes) -> bool {
        if !self.at_boundary() {
            return false;
        }
        self.put(bytes);
        self.swallow_lf = true;
        true
    }

    /// True when the reader is between two events, or will be after what waits.
    pub fn at_boundary(&self) -> bool {
        self.closed || !self.passing
    }

    /// True after the last event.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// How many bytes wait to be taken.
    pub fn waiting(&self) -> usize {
        self.out_len
    }

    /// How many bytes of an event that is not whole are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes what waits: one chunk as it came, or several small ones as one.
    pub fn pop(&mut self) -> Option<Bytes> {
        if self.out.len() < 2 || self.out_len > JOIN {
            let bytes = self.out.pop_front()?;
            self.out_len -= bytes.len();
            return Some(bytes);
        }
        let mut joined = BytesMut::with_capacity(self.out_len);
        self.out.drain(..).for_each(|bytes| joined.extend_from_slice(&bytes));
        self.out_len = 0;
        Some(joined.freeze())
    }

    fn put(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.out_len += bytes.len();
            self.out.push_back(bytes);
        }
    }
}

/// The beginning of an event. Shared as long as it is one piece, copied together when it is more: an engine that sends single
/// bytes must not cost a reference each.
#[derive(Debug, Default)]
struct Held {
    one: Bytes,
    many: BytesMut,
}

impl Held {
    fn len(&self) -> usize {
        self.one.len() + self.many.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn clear(&mut self) {
        self.one = Bytes::new();
        self.many.clear();
    }

    fn add(&mut self, part: Bytes) {
        if self.is_empty() {
            self.one = part;
        } else {
            self.append(&part);
        }
    }

    fn append(&mut self, part: &[u8]) {
        let one = std::mem::take(&mut self.one);
        self.many.reserve(one.len() + part.len());
        self.many.extend_from_slice(&one);
        self.many.extend_from_slice(part);
    }

    /// The whole event, once its last part is there. Nothing is kept when that part is all of it.
    fn complete<'a>(&'a mut self, last: &'a [u8]) -> &'a [u8] {
        if self.is_empty() {
            return last;
        }
        self.append(last);
        &self.many
    }

    fn take(&mut self) -> Bytes {
        if self.many.is_empty() {
            return std::mem::take(&mut self.one);
        }
        // What is left of the buffer is used again, unless one long event made it big.
        let bytes = self.many.split().freeze();
        if bytes.len() > JOIN {
            self.many = BytesMut::new();
        }
        bytes
    }
}
