//! The fields of one event.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// One event, as its bytes. Fields are looked for when asked for: most events are only forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    raw: &'a [u8],
    cut: bool,
}

/// What an event says, read in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The event's name; `None` is an ordinary message, and so is one with an empty name.
    pub name: Option<&'a [u8]>,
    /// The data, lines joined with LF. `None` when there is no data line: then a browser dispatches nothing.
    pub data: Option<Cow<'a, [u8]>>,
    /// It sets the last event id.
    pub has_id: bool,
    /// It has fields that are not comments.
    pub has_fields: bool,
    /// It has comments.
    pub has_comments: bool,
}

impl<'a> Event<'a> {
    /// An event from its bytes, with or without the line ends that close it.
    pub fn new(raw: &'a [u8]) -> Self {
        Self { raw, cut: false }
    }

    pub(crate) fn cut(raw: &'a [u8]) -> Self {
        Self { raw, cut: true }
    }

    /// All its bytes.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// True when the input ended inside it: its data may be torn.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Name and value of each line; comments have an empty name.
    pub fn fields(&self) -> Fields<'a> {
        Fields { rest: self.raw }
    }

    /// Reads the event.
    pub fn parts(&self) -> Parts<'a> {
        let mut parts =
            Parts { name: None, data: None, has_id: false, has_fields: false, has_comments: false };
        for (name, value) in self.fields() {
            parts.has_fields |= !name.is_empty();
            match name {
                b"data" => match &mut parts.data {
                    None => parts.data = Some(Cow::Borrowed(value)),
                    Some(data) => {
                        let data = data.to_mut();
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                },
                b"event" => parts.name = Some(value).filter(|name| !name.is_empty()),
                // The standard ignores an id with a NUL.
                b"id" => parts.has_id |= memchr(0, value).is_none(),
                b"" => parts.has_comments = true,
                _ => {}
            }
        }
        parts
    }

    /// The data, lines joined with LF. `None` when there is no data line.
    pub fn data(&self) -> Option<Cow<'a, [u8]>> {
        self.parts().data
    }
}

impl Parts<'_> {
    /// True when it has data of at least one byte.
    pub fn has_data(&self) -> bool {
        self.data.as_ref().is_some_and(|data| !data.is_empty())
    }

    /// True when it consists of comments only.
    pub fn is_comment(&self) -> bool {
        self.has_comments && !self.has_fields
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
        let parts = event.parts();
        assert_eq!(parts.data.as_deref().unwrap(), b"a\nb\n c\n");
        assert_eq!(parts.name.unwrap(), b"delta");
        assert!(parts.has_id && parts.has_data() && !parts.is_comment());
    }

    #[test]
    fn an_empty_name_is_no_name_and_an_id_with_a_nul_is_no_id() {
        for (raw, name, has_id) in [
            (&b"event:\ndata: x\n\n"[..], None, false),
            (b"event\ndata: x\n\n", None, false),
            (b"event: a\nevent:\ndata: x\n\n", None, false),
            (b"event:\nevent: a\ndata: x\n\n", Some(&b"a"[..]), false),
            (b"event:  \ndata: x\n\n", Some(b" "), false),
            (b"id: 1\ndata: x\n\n", None, true),
            // The last event id is set to nothing.
            (b"id\ndata: x\n\n", None, true),
            (b"id: 1\x002\ndata: x\n\n", None, false),
            (b"id: 1\x002\nid: 3\ndata: x\n\n", None, true),
            (b"id: 3\nid: 1\x002\ndata: x\n\n", None, true),
        ] {
            let parts = Event::new(raw).parts();
            assert_eq!((parts.name, parts.has_id), (name, has_id), "{:?}", String::from_utf8_lossy(raw));
        }
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
            let event = Event::new(raw).parts();
            assert_eq!((event.has_data(), event.is_comment()), (has_data, is_comment), "{raw:?}");
        }
        assert_eq!(Event::new(b"event: ping\n\n").data(), None);
        assert_eq!(Event::new(b"data:\n\n").data(), Some(Cow::Borrowed(&b""[..])));
    }
}
