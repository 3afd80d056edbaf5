//! One engine: its HTTP client, its credential, its breaker, one attempt.

use std::time::Duration;

use config::{AiConfig, EngineConfig};
use http::{HeaderMap, HeaderValue, header};
use runtime::Breaker;
use secrecy::ExposeSecret as _;
use url::Url;

use crate::{
    Answer, EngineError, Fault, Name, Report, Request, Want,
    answer::{first_event, read},
    client::{self, Client, Head},
};

/// Failures in a row that open the breaker.
const FAILURES_TO_OPEN: u32 = 5;
/// Largest answer that is no stream: a batch of embeddings as decimal numbers.
const MAX_ANSWER: usize = 64 << 20;
/// So much of an error is read, and so long.
const MAX_ERROR: usize = 64 << 10;
const ERROR_TIME: Duration = Duration::from_secs(5);

/// An engine and how to talk to it.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) name: Name,
    client: Client,
    base: Url,
    /// In every request.
    headers: HeaderMap,
    pub(crate) breaker: Breaker,
}

impl Engine {
    pub(crate) fn from_config(engine: &EngineConfig, config: &AiConfig) -> anyhow::Result<Self> {
        // No total and no read timeout: they would end healthy streams. Every wait has a deadline of its own.
        let client = Client::new(&engine.url, config.connect_timeout)?;
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("ballast/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(key) = &engine.api_key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(Self {
            name: engine.name.as_str().into(),
            client,
            base: engine.url.clone(),
            headers,
            breaker: Breaker::new(format!("engine:{}", engine.name), FAILURES_TO_OPEN),
        })
    }

    /// Asks once.
    pub(crate) async fn attempt(&self, request: &Request, want: Want) -> Result<Answer, Fault> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(&request.path);
        }
        let mut headers = self.headers.clone();
        headers.extend(request.headers.clone());
        let accept = match want {
            Want::Stream => "text/event-stream",
            Want::Json => "application/json",
            Want::Either => "text/event-stream, */*",
        };
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        let sent = self.client.send(&request.method, &url, &headers, request.body.clone()).await;
        let (head, body) = sent.map_err(|error| match error {
            client::Error::Connect(error) => Fault::Unreachable(error),
            client::Error::Exchange(error) => Fault::Broken(error),
        })?;
        if head.status.is_redirection() {
            return Err(Fault::Unexpected("a redirect"));
        }
        if !head.status.is_success() {
            return Err(read_error(head, body).await);
        }
        if head.content_encoding.is_some_and(|encoding| encoding != "identity") {
            return Err(Fault::Unexpected("it is compressed, which was not asked for"));
        }
        let content_type = head.content_type;
        let is_stream = content_type.as_ref().is_some_and(|value| media_type(value) == "text/event-stream");
        match (want, is_stream) {
            (Want::Stream | Want::Either, true) => first_event(body).await.map(Answer::Stream),
            (Want::Stream, false) => Err(Fault::Unexpected("it is not an event stream")),
            (Want::Json, true) => Err(Fault::Unexpected("it is an event stream, which was not asked for")),
            (Want::Json, false) => {
                let body = read(body, MAX_ANSWER).await?;
                // Whatever its type says: only JSON goes on as JSON.
                Report::parse(&body).map_err(|_| Fault::Unexpected("it is not JSON"))?;
                Ok(Answer::Whole { content_type: HeaderValue::from_static("application/json"), body })
            }
            (Want::Either, false) => {
                let content_type =
                    content_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
                Ok(Answer::Whole { content_type, body: read(body, MAX_ANSWER).await? })
            }
        }
    }

    /// Closes connections that nobody has used for a while.
    pub(crate) fn close_idle(&self) {
        self.client.close_idle();
    }

    /// The health check: does it answer at all? Its errors tell no address.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let request = Request::get(["models"]).request_id("health");
        match self.attempt(&request, Want::Json).await {
            Ok(_) => Ok(()),
            Err(Fault::Status(error)) => match error.status {
                401 | 403 => Err("the engine refuses the credential: check its key".to_owned()),
                // Some engines have no list of models.
                400..=499 => Ok(()),
                status => Err(format!("the engine answers {status}")),
            },
            // As rustls reports a certificate that it refuses.
            Err(Fault::Unreachable(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err("TLS failed: is its certificate for this name, and from an authority that this machine trusts?".to_owned())
            }
            Err(Fault::Unreachable(_)) => Err("cannot connect: check its URL".to_owned()),
            Err(Fault::Unexpected(what)) => Err(format!("the engine's answer is unusable: {what}")),
            Err(_) => Err("the engine does not answer".to_owned()),
        }
    }
}

/// `text/html` of `Text/HTML; charset=utf-8`.
fn media_type(value: &HeaderValue) -> String {
    let text = value.to_str().unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn read_error(head: Head, body: client::Body) -> Fault {
    let body = tokio::time::timeout(ERROR_TIME, read(body, MAX_ERROR)).await;
    let body = body.unwrap_or(Ok(bytes::Bytes::new())).unwrap_or_default();
    let mut error = EngineError::parse(head.status.as_u16(), &body);
    error.retry_after = head.retry_after;
    Fault::Status(Box::new(error))
}
