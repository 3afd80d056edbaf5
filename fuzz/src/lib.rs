//! What the targets share: input that is cut into pieces, and the yardstick for event streams.

use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};

#[path = "../../crates/sse/tests/reference/mod.rs"]
mod yardstick;

/// Bytes, and where they are cut into pieces.
#[derive(Debug)]
pub struct Pieces {
    lengths: Vec<u8>,
    bytes: Vec<u8>,
}

/// Takes all that is left, so a field of this type comes last. The bytes of the stream are consecutive in the fuzzer's input:
/// then the words of the dictionary fit.
impl<'a> Arbitrary<'a> for Pieces {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let cuts = usize::from(u8::arbitrary(u)? % 32).min(u.len());
        let lengths = u.bytes(cuts)?.to_vec();
        let bytes = u.bytes(u.len())?.to_vec();
        Ok(Self { lengths, bytes })
    }
}

impl Pieces {
    /// All bytes.
    pub fn whole(&self) -> &[u8] {
        &self.bytes
    }

    /// The pieces in their order, empty ones included.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        let cut = self.lengths.iter().map(move |length| {
            let (piece, after) = rest.split_at(rest.len().min(usize::from(*length)));
            rest = after;
            piece
        });
        let covered = self.lengths.iter().map(|length| usize::from(*length)).sum::<usize>();
        cut.chain(std::iter::once(&self.bytes[self.bytes.len().min(covered)..]))
    }
}

/// The data of each event in a stream, by the standard's own algorithm. A last event that is cut short counts.
pub fn events(stream: &[u8]) -> Vec<Vec<u8>> {
    yardstick::reference(stream)
}

/// A stream without its byte order mark.
pub fn without_bom(stream: &[u8]) -> &[u8] {
    stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream)
}
