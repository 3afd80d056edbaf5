//! The ways in which the engine can misbehave, by name. What each does is in `effect`.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

/// One way to misbehave. Written `NAME` or `NAME:ARG`; every argument has a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The listener is closed for so long: connections are refused, idle ones closed; running answers go
    /// on. Only by the control route.
    Refuse(Duration),
    /// The request is read, nothing is answered, the connection stays open.
    HangBeforeHeaders,
    /// The connection is closed instead of an answer.
    CloseBeforeHeaders,
    /// The connection is reset instead of an answer.
    ResetBeforeHeaders,
    /// The response head comes one byte at a time, with this pause after each; then all is well.
    SlowHeaders(Duration),
    /// A response head, then nothing.
    HangAfterHeaders,
    /// Nothing more after so many tokens; the connection stays open.
    Stall(usize),
    /// TCP RST after so many chunks.
    Reset(usize),
    /// After so many chunks, half an HTTP chunk, then the connection is closed.
    HalfChunk(usize),
    /// So many bytes that are no event stream (nor JSON), with status 200.
    Garbage(usize),
    /// A web page, with status 200.
    Html,
    /// An OpenAI error object with this status, after the first-token delay; 429 and 503 with `Retry-After`.
    Status(StatusCode),
    /// 307 to this URL.
    Redirect(HeaderValue),
    /// The stream ends cleanly, but without its closing event (`[DONE]`, `response.completed`, `done`).
    NoDone,
    /// The closing event comes, but the body stays open.
    DoneOpen,
    /// Comments for ever, one per so much time, and never an event.
    Comments(Duration),
    /// An event with one line of so many bytes after the first event; then all is well.
    LongLine(usize),
    /// So many bytes without any line end.
    NoNewline(usize),
    /// An event with invalid UTF-8 after the first event; then all is well.
    InvalidUtf8,
    /// gzip, although nobody asked for it.
    Gzip,
    /// After so many tokens an error in the protocol's own form, then a clean end without the closing event.
    InBandError(usize),
    /// The same as a named event: `event: error`.
    NamedError(usize),
    /// Lines end in CR LF.
    Crlf,
    /// Lines end in CR.
    Cr,
    /// The stream begins with a byte order mark.
    Bom,
    /// Written out every so many bytes, wherever that cuts events and characters.
    Split(usize),
    /// Empty events, empty data and empty comments between all events.
    EmptyEvents,
}

/// From an argument to a fault.
type Make = fn(&str) -> Result<Fault, String>;

/// Name, default argument (none: takes no argument) and constructor of every fault.
const FAULTS: [(&str, &str, Make); 27] = [
    ("refuse", "5000", |arg| Ok(Fault::Refuse(millis(arg)?))),
    ("hang-before-headers", "", |_| Ok(Fault::HangBeforeHeaders)),
    ("close-before-headers", "", |_| Ok(Fault::CloseBeforeHeaders)),
    ("reset-before-headers", "", |_| Ok(Fault::ResetBeforeHeaders)),
    ("slow-headers", "50", |arg| Ok(Fault::SlowHeaders(millis(arg)?))),
    ("hang-after-headers", "", |_| Ok(Fault::HangAfterHeaders)),
    ("stall", "3", |arg| Ok(Fault::Stall(number(arg)?))),
    ("reset", "5", |arg| Ok(Fault::Reset(number(arg)?))),
    ("half-chunk", "5", |arg| Ok(Fault::HalfChunk(number(arg)?))),
    ("garbage", "4096", |arg| Ok(Fault::Garbage(number(arg)?))),
    ("html", "", |_| Ok(Fault::Html)),
    ("status", "500", |arg| Ok(Fault::Status(status(arg)?))),
    ("redirect", "http://127.0.0.1:9/", |arg| Ok(Fault::Redirect(url(arg)?))),
    ("no-done", "", |_| Ok(Fault::NoDone)),
    ("done-open", "", |_| Ok(Fault::DoneOpen)),
    ("comments", "100", |arg| Ok(Fault::Comments(millis(arg)?))),
    ("long-line", "10485760", |arg| Ok(Fault::LongLine(number(arg)?))),
    ("no-newline", "268435456", |arg| Ok(Fault::NoNewline(number(arg)?))),
    ("invalid-utf8", "", |_| Ok(Fault::InvalidUtf8)),
    ("gzip", "", |_| Ok(Fault::Gzip)),
    ("in-band-error", "3", |arg| Ok(Fault::InBandError(number(arg)?))),
    ("named-error", "3", |arg| Ok(Fault::NamedError(number(arg)?))),
    ("crlf", "", |_| Ok(Fault::Crlf)),
    ("cr", "", |_| Ok(Fault::Cr)),
    ("bom", "", |_| Ok(Fault::Bom)),
    ("split", "1", |arg| Ok(Fault::Split(number(arg)?.max(1)))),
    ("empty-events", "", |_| Ok(Fault::EmptyEvents)),
];

impl Fault {
    /// How every fault is written, with the default of its argument: `stall:3`, `html`, ...
    pub fn known() -> impl Iterator<Item = String> {
        FAULTS.iter().map(|(name, default, _)| match *default {
            "" => (*name).to_owned(),
            default => format!("{name}:{default}"),
        })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, arg) = match text.split_once(':') {
            Some((name, arg)) => (name, Some(arg)),
            None => (text, None),
        };
        let Some((_, default, make)) = FAULTS.iter().find(|(known, ..)| *known == name) else {
            let known = FAULTS.map(|(known, ..)| known).join(", ");
            return Err(format!("unknown fault \"{name}\"; known: {known}"));
        };
        if default.is_empty() && arg.is_some() {
            return Err(format!("fault {name} takes no argument"));
        }
        make(arg.unwrap_or(default)).map_err(|problem| format!("fault {name}: {problem}"))
    }
}

fn number(arg: &str) -> Result<usize, String> {
    arg.parse().map_err(|_| format!("\"{arg}\" is not a number"))
}

fn millis(arg: &str) -> Result<Duration, String> {
    let millis = arg.parse::<u32>().map_err(|_| format!("\"{arg}\" is not a number of milliseconds"))?;
    Ok(Duration::from_millis(u64::from(millis)))
}

fn status(arg: &str) -> Result<StatusCode, String> {
    let status = arg.parse::<StatusCode>().ok().filter(|s| s.is_client_error() || s.is_server_error());
    status.ok_or_else(|| format!("\"{arg}\" is not a status between 400 and 599"))
}

fn url(arg: &str) -> Result<HeaderValue, String> {
    arg.parse().map_err(|_| format!("\"{arg}\" cannot be a Location"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_default_that_parses() {
        for (name, ..) in FAULTS {
            name.parse::<Fault>().unwrap();
        }
        for written in Fault::known() {
            written.parse::<Fault>().unwrap();
        }
    }

    #[test]
    fn arguments_may_contain_colons_and_are_checked() {
        let redirect = Fault::Redirect(HeaderValue::from_static("http://10.0.0.1:80/x"));
        assert_eq!("redirect:http://10.0.0.1:80/x".parse(), Ok(redirect));
        assert_eq!("status:429".parse(), Ok(Fault::Status(StatusCode::TOO_MANY_REQUESTS)));
        for bad in ["", "stal", "stall:x", "stall:-1", "status:200", "status:abc", "html:1", "Stall"] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }
}
