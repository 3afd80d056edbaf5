//! The fields of one event.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// One event, as its bytes. Fields are looked for when asked for: most events are only forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    raw: &'a [u8],
}

impl<'a> Event<'a> {
    /// An event from its bytes, with or without the line ends that close it.
    pub fn new(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// All its bytes.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Name and value of each line; comments have an empty name.
    pub fn fields(&self) -> Fields<'a> {
        Fields { rest: self.raw }
    }

    /// The data, lines joined with LF. `None` when there is no data line: then a browser dispatches nothing.
    pub fn data(&self) -> Option<Cow<'a, [u8]>> {
        let mut lines = self.fields().filter(|(name, _)| *name == b"data").map(|(_, value)| value);
        let first = lines.next()?;
        let Some(second) = lines.next() else { return Some(Cow::Borrowed(first)) };
        let mut joined = [first, b"\n", second].concat();
        for line in lines {
            joined.push(b'\n');
            joined.extend_from_slice(line);
        }
        Some(Cow::Owned(joined))
    }

    /// The event's name; `None` is an ordinary message.
    pub fn name(&self) -> Option<&'a [u8]> {
        self.fields().filter(|(name, _)| *name == b"event").last().map(|(_, value)| value)
    }

    /// True when it has data of at least one byte.
    pub fn has_data(&self) -> bool {
        self.fields().any(|(name, value)| name == b"data" && !value.is_empty())
    }

    /// True when it consists of comments only.
    pub fn is_comment(&self) -> bool {
        let mut fields = self.fields();
        fields.next().is_some_and(|(name, _)| name.is_empty()) && fields.all(|(name, _)| name.is_empty())
    }

    /// True when it sets the last event id.
    pub fn has_id(&self) -> bool {
        self.fields().any(|(name, _)| name == b"id")
    }
}

/// The lines of an event as names and values. Empty lines are left out.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            // The LF of a CRLF is seen as one more empty line: those are skipped anyway.
            let end = memchr2(b'\n', b'\r', self.rest).unwrap_or(self.rest.len());
            let line = &self.rest[..end];
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if !line.is_empty() {
                return Some(field(line));
            }
        }
    }
}

fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr(b':', line) {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_the_standard() {
        let event =
            Event::new(b": note\nevent: delta\ndata: a\ndata:b\r\ndata:  c\rdata\nid: 7\nretry: 5\n\n");
        assert_eq!(event.data().unwrap(), &b"a\nb\n c\n"[..]);
        assert_eq!(event.name().unwrap(), b"delta");
        assert!(event.has_id() && event.has_data() && !event.is_comment());
    }

    #[test]
    fn one_line_of_data_is_borrowed() {
        assert!(matches!(Event::new(b"data: {\"a\":1}\n\n").data(), Some(Cow::Borrowed(b"{\"a\":1}"))));
    }

    #[test]
    fn events_without_data_are_told_apart() {
        for (raw, has_data, is_comment) in [
            (&b"\n"[..], false, false),
            (b":\n\n", false, true),
            (b": a\n: b\n\n", false, true),
            (b": a\ndata: x\n\n", true, false),
            (b"data:\n\n", false, false),
            (b"data\n\n", false, false),
            (b"event: ping\n\n", false, false),
            (b"datax: 1\n\n", false, false),
        ] {
            let event = Event::new(raw);
            assert_eq!((event.has_data(), event.is_comment()), (has_data, is_comment), "{raw:?}");
        }
        assert_eq!(Event::new(b"event: ping\n\n").data(), None);
        assert_eq!(Event::new(b"data:\n\n").data(), Some(Cow::Borrowed(&b""[..])));
    }
}
