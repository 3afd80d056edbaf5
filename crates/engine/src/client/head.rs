//! The head of an answer.

use std::io;

use http::{HeaderValue, StatusCode};

use super::{answer::Left, chunked::Chunked};

/// What a head may have; more is no engine's.
pub(super) const MAX_BYTES: usize = 32 << 10;
const MAX_LINES: usize = 100;

/// What is looked at of a head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) content_encoding: Option<HeaderValue>,
    pub(crate) retry_after: Option<HeaderValue>,
    /// What the body will be.
    pub(super) body: Left,
    /// The connection can be used again after the answer.
    pub(super) keep_alive: bool,
}

impl Head {
    /// The head at the begin of `bytes` and its length; `None` while it is not whole. Interim answers (1xx) are heads too.
    pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
        let mut parsed = httparse::Response::new(&mut lines);
        let length = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_BYTES => return Ok(None),
            Ok(httparse::Status::Partial) => return Err(invalid("the answer's head is too long")),
            Err(error) => return Err(invalid(&format!("the answer is no HTTP: {error}"))),
        };
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let mut head = Self {
            status: status.ok_or_else(|| invalid("the answer has no status"))?,
            content_type: None,
            content_encoding: None,
            retry_after: None,
            body: Left::UntilClose,
            keep_alive: parsed.version == Some(1),
        };
        let (mut coding, mut bytes) = (None, None);
        for line in parsed.headers {
            let value = || HeaderValue::from_bytes(line.value).ok();
            let is = |name| line.name.eq_ignore_ascii_case(name);
            if is("content-type") {
                head.content_type = value();
            } else if is("content-encoding") {
                head.content_encoding = value();
            } else if is("retry-after") {
                head.retry_after = value();
            } else if is("connection") {
                let value = line.value.to_ascii_lowercase();
                head.keep_alive &=
                    !value.split(|byte| *byte == b',').any(|option| option.trim_ascii() == b"close");
            } else if is("transfer-encoding") {
                if coding.is_some() || !line.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(invalid("the answer's transfer coding is not understood"));
                }
                coding = Some(Left::Chunks(Chunked::default()));
            } else if is("content-length") {
                let length = std::str::from_utf8(line.value).ok().map(str::trim);
                let length = length.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                let length = length.and_then(|text| text.parse().ok());
                let length = length.ok_or_else(|| invalid("the answer's length is no number"))?;
                if bytes.is_some_and(|other| other != length) {
                    return Err(invalid("the answer has two lengths"));
                }
                bytes = Some(length);
            }
        }
        head.keep_alive &= coding.is_none() || bytes.is_none();
        let is_bodiless = head.status.is_informational() || matches!(head.status.as_u16(), 204 | 304);
        head.body = match (coding, bytes) {
            _ if is_bodiless => Left::Bytes(0),
            (Some(coding), _) => coding,
            (None, Some(bytes)) => Left::Bytes(bytes),
            (None, None) => Left::UntilClose,
        };
        Ok(Some((head, length)))
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &str) -> io::Result<Head> {
        let text = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        for cut in 0..text.len() {
            assert!(Head::parse(&text.as_bytes()[..cut]).unwrap().is_none(), "{cut}: {lines}");
        }
        let (head, length) = Head::parse(format!("{text}body").as_bytes())?.unwrap();
        assert_eq!(length, text.len());
        Ok(head)
    }

    /// RFC 9112, section 6.3.
    #[test]
    fn the_bodys_end_is_where_the_standard_says() {
        for (lines, body, keep_alive) in [
            ("", Left::UntilClose, true),
            ("Content-Length: 5\r\n", Left::Bytes(5), true),
            ("content-length: 5\r\nContent-Length: 5\r\n", Left::Bytes(5), true),
            ("Transfer-Encoding: Chunked\r\n", Left::Chunks(Chunked::default()), true),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Left::Chunks(Chunked::default()), false),
            ("Content-Length: 5\r\nConnection: x, Close\r\n", Left::Bytes(5), false),
        ] {
            let head = parse(lines).unwrap();
            assert_eq!((head.body, head.keep_alive), (body, keep_alive), "{lines}");
        }
        for status in ["100 Continue", "204 No Content", "304 Not Modified"] {
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
            assert_eq!(Head::parse(text.as_bytes()).unwrap().unwrap().0.body, Left::Bytes(0), "{status}");
        }
        let (old, _) = Head::parse(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n").unwrap().unwrap();
        assert!(!old.keep_alive);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for lines in [
            "Content-Length: five\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
            assert!(Head::parse(text.as_bytes()).is_err(), "{lines}");
        }
        for text in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "{\"a\":1}"] {
            assert!(Head::parse(text.as_bytes()).is_err(), "{text}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_BYTES));
        assert!(Head::parse(endless.as_bytes()).is_err());
        assert!(Head::parse(format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(101)).as_bytes()).is_err());
    }
}
