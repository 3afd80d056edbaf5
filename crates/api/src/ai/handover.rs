//! A chat completion that a worker will ask the engine for: read, checked and admitted here like any other.

use axum::extract::Request;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    Ai, Protocol,
    proxy::{SCOPE, read_body},
    request::Call,
    reservation::Reservation,
};
use crate::{
    Error, Result,
    admission::{Caller, Pending},
};

/// A request that may be made. What it took of the limits is given back when this is dropped, unless it is handed over.
pub(crate) struct Accepted {
    /// Who asks.
    pub(crate) caller: Caller,
    /// Which model.
    pub(crate) model: Box<str>,
    /// The body for the engine: it asks for a stream, and for the usage.
    pub(crate) body: Bytes,
    /// About so many tokens are read.
    pub(crate) prompt_tokens: u64,
    reservation: Reservation,
}

impl Accepted {
    /// What it took of the limits; `None` when Redis does not know of it.
    pub(crate) fn held(&self) -> Option<runs::Held> {
        self.reservation.held()
    }

    /// From now on others give it back.
    pub(crate) fn hand_over(self) {
        self.reservation.hand_over();
    }
}

/// Reads a chat completion and passes it by the limits.
pub(crate) async fn accept(ai: &Ai, pending: Pending, request: Request) -> Result<Accepted> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, ai.inner.config.max_body_bytes).await?;
    let call = Call::parse(Protocol::Chat, &body)?;
    let body = for_a_stream(&body)?;
    let mut reservation = Reservation::new(&ai.inner);
    let decided = pending.admit(|admission, caller| {
        reservation.add_to(admission, caller, call.prompt_tokens, call.completion_limit);
    });
    let (caller, admitted) = match decided.await {
        Ok(decided) => decided,
        Err(error) => {
            reservation.refused();
            return Err(error);
        }
    };
    reservation.admitted(&admitted);
    caller.require_scope(SCOPE)?;
    Ok(Accepted { caller, model: call.model, body, prompt_tokens: call.prompt_tokens, reservation })
}

/// The body with `stream` and `stream_options.include_usage` switched on, whatever it said.
fn for_a_stream(body: &Bytes) -> Result<Bytes> {
    let mut body: Map<String, Value> = serde_json::from_slice(body).map_err(Error::internal)?;
    body.insert("stream".to_owned(), json!(true));
    let options = body.entry("stream_options").or_insert_with(|| json!({}));
    match options.as_object_mut() {
        Some(options) => drop(options.insert("include_usage".to_owned(), json!(true))),
        None => *options = json!({ "include_usage": true }),
    }
    Ok(serde_json::to_vec(&body).map_err(Error::internal)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_a_stream_whatever_its_body_says() {
        for (body, options) in [
            (r#"{"model":"m"}"#, json!({ "include_usage": true })),
            (r#"{"model":"m","stream":false,"stream_options":null}"#, json!({ "include_usage": true })),
            (
                r#"{"model":"m","stream_options":{"x":1,"include_usage":false}}"#,
                json!({ "x": 1, "include_usage": true }),
            ),
        ] {
            let body = for_a_stream(&Bytes::from_static(body.as_bytes())).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body, json!({ "model": "m", "stream": true, "stream_options": options }));
        }
    }
}
