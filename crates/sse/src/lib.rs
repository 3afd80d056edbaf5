//! Event streams (`text/event-stream`) that pass through: watched event by event, forwarded byte for byte.
//!
//! The protocol is section 9.2 of the HTML standard, <https://html.spec.whatwg.org/multipage/server-sent-events.html>.
//!
//! - [`Scanner`] finds where events end, however the bytes are cut into chunks.
//! - [`Event`] reads the fields of one event, borrowing from it.
//! - [`Relay`] forwards chunks: what it gets is what it gives, as the same reference-counted [`Bytes`](bytes::Bytes), but an
//!   event goes out only when it is whole. So the reader is always between two events, where something may be inserted
//!   (a heartbeat, an error) and whole events may be left out.
//! - [`RelayBody`] is that as an HTTP body, driven by a [`Watch`].
//!
//! Everything here is pure: no clock, no task, no socket. Time is the watch's business.
//!
//! ```
//! use bytes::Bytes;
//! use sse::{Relay, Verdict};
//!
//! let mut relay = Relay::default();
//! let mut seen = Vec::new();
//! let mut watch = |event: sse::Event<'_>| {
//!     seen.push(event.data().unwrap_or_default().into_owned());
//!     if event.raw().starts_with(b"data: {\"usage\"") { Verdict::Drop } else { Verdict::Keep }
//! };
//! relay.push(Bytes::from_static(b"data: one\n\ndata: {\"usage\":1}\n\nda"), &mut watch);
//! assert_eq!(relay.pop().unwrap(), "data: one\n\n"); // the third event is not whole yet
//! assert!(relay.insert(Bytes::from_static(b": ping\n\n"))); // the reader is between events
//! relay.push(Bytes::from_static(b"ta: two\n\n"), &mut watch);
//! assert_eq!(relay.pop().unwrap(), ": ping\n\ndata: two\n\n");
//! assert_eq!(seen, [&b"one"[..], b"{\"usage\":1}", b"two"]);
//! ```
//!
//! # Guarantees
//! - Bytes out are bytes in, in order, except for: a byte order mark at the start (clients lose their first event over it),
//!   events that the watch drops, what the watch inserts, and the missing line ends of a last event that was cut short.
//! - Events are found the same for every way of cutting the input. CR, LF and CRLF may be mixed.
//! - Memory is bounded: an event longer than the limit ([`MAX_EVENT`]) is not held any more but passed through as it comes,
//!   unwatched; the relay is in step again with the next event.
//! - Work per chunk is one pass over its bytes. A chunk that ends where an event ends is not copied; of other chunks only
//!   the event that was cut is.

mod body;
mod event;
mod relay;
mod scan;

pub use body::{End, RelayBody, Signal, Watch};
pub use event::{Event, Fields, Parts};
pub use relay::{MAX_EVENT, Relay, Verdict};
pub use scan::{Scanner, Step};
