//! Just enough HTTP and JSON to ask health routes and try out a running API on this machine.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream of the simulated engine takes a few seconds, with silences far below this.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
    /// When each piece of it came, since the request was sent.
    pub(crate) pieces: Vec<Duration>,
}

/// `GET path` on 127.0.0.1.
pub(crate) fn get(port: u16, path: &str) -> Result<Answer> {
    request(port, "GET", path, &[], "")
}

/// One request on a connection of its own; the answer when it is complete.
pub(crate) fn request(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .with_context(|| format!("nothing answers on port {port}"))?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.set_write_timeout(Some(READ_TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&[name, ": ", value, "\r\n"].concat());
    }
    if !body.is_empty() {
        let length = body.len().to_string();
        head.push_str(&["content-type: application/json\r\ncontent-length: ", &length, "\r\n"].concat());
    }
    stream.write_all([&head, "\r\n", body].concat().as_bytes()).context("cannot send the request")?;
    let sent = Instant::now();
    let (mut bytes, mut pieces) = (Vec::new(), Vec::new());
    let mut piece = [0; 16 * 1024];
    while bytes.len() < MAX_ANSWER {
        let read = stream.read(&mut piece).context("the answer broke off")?;
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..read]);
        pieces.push(sent.elapsed());
    }
    Ok(Answer { pieces, ..parse(&bytes)? })
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (headers, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = headers.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP answer")?;
    let headers = headers.to_ascii_lowercase();
    let body =
        if headers.contains("\r\ntransfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
    Ok(Answer { status, headers, body, pieces: Vec::new() })
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).unwrap_or(0);
        let Some(chunk) = tail.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        body.push_str(chunk);
        rest = tail.get(size + 2..).unwrap_or_default();
    }
    body
}

/// The first string field of this name in a JSON text. For answers whose shape we know.
pub(crate) fn string_field(json: &str, name: &str) -> Option<String> {
    let rest = json.split_once(&format!("\"{name}\""))?.1.trim_start().strip_prefix(':')?;
    let value = rest.trim_start().strip_prefix('"')?.split_once('"')?.0;
    (!value.contains('\\')).then(|| value.to_owned())
}

/// The largest number in a field of this name.
pub(crate) fn max_number_field(json: &str, name: &str) -> Option<u64> {
    let number = |rest: &str| {
        let digits: String =
            rest.trim_start().strip_prefix(':')?.trim_start().chars().map_while(digit).collect();
        digits.parse().ok()
    };
    json.split(&format!("\"{name}\"")).skip(1).filter_map(number).max()
}

fn digit(c: char) -> Option<char> {
    c.is_ascii_digit().then_some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_answer_is_put_together() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n3;x\r\n[DO\r\n3\r\nNE]\r\n0\r\n\r\n");
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "data:[DONE]"));
    }

    #[test]
    fn string_fields_are_read_in_any_order_and_spacing() {
        let json = r#"{ "a" : "1", "b":"two words","c":3 }"#;
        assert_eq!(string_field(json, "b").as_deref(), Some("two words"));
        assert_eq!(string_field(json, "a").as_deref(), Some("1"));
        assert_eq!(string_field(json, "c"), None);
        assert_eq!(max_number_field(r#"[{"n": 3}, {"n":12,"m":99}]"#, "n"), Some(12));
        assert_eq!(max_number_field(json, "d"), None);
    }
}
