//! One engine: its HTTP client, its credential, its breaker, one attempt.

use std::time::Duration;

use config::{AiConfig, EngineConfig};
use http::{HeaderMap, HeaderValue, Response, header};
use reqwest::{Client, redirect};
use runtime::Breaker;
use secrecy::ExposeSecret as _;
use url::Url;

use crate::{
    Answer, EngineError, Fault, Name, Report, Request, Want,
    answer::{first_event, read},
};

/// Failures in a row that open the breaker.
const FAILURES_TO_OPEN: u32 = 5;
/// Below uvicorn's and Node's 5 s: a connection that the engine is about to close is not used any more.
const POOL_IDLE: Duration = Duration::from_secs(4);
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
        let client = Client::builder()
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .no_proxy()
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .http1_only()
            .build()?;
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
        let mut out = reqwest::Request::new(request.method.clone(), url);
        let headers = out.headers_mut();
        *headers = self.headers.clone();
        headers.extend(request.headers.clone());
        let accept = match want {
            Want::Stream => "text/event-stream",
            Want::Json => "application/json",
            Want::Either => "text/event-stream, */*",
        };
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        if !request.body.is_empty() {
            *out.body_mut() = Some(request.body.clone().into());
        }
        let response = self.client.execute(out).await.map_err(|error| {
            if error.is_connect() { Fault::Unreachable(error) } else { Fault::Broken(error) }
        })?;
        let response: Response<reqwest::Body> = response.into();
        let status = response.status();
        if status.is_redirection() {
            return Err(Fault::Unexpected("a redirect"));
        }
        if !status.is_success() {
            return Err(read_error(response).await);
        }
        if response.headers().get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(Fault::Unexpected("it is compressed, which was not asked for"));
        }
        let content_type = response.headers().get(header::CONTENT_TYPE).cloned();
        let is_stream = content_type.as_ref().is_some_and(|value| media_type(value) == "text/event-stream");
        match (want, is_stream) {
            (Want::Stream | Want::Either, true) => {
                first_event(response.into_body()).await.map(Answer::Stream)
            }
            (Want::Stream, false) => Err(Fault::Unexpected("it is not an event stream")),
            (Want::Json, true) => Err(Fault::Unexpected("it is an event stream, which was not asked for")),
            (Want::Json, false) => {
                let body = read(response.into_body(), MAX_ANSWER).await?;
                // Whatever its type says: only JSON goes on as JSON.
                Report::parse(&body).map_err(|_| Fault::Unexpected("it is not JSON"))?;
                Ok(Answer::Whole { content_type: HeaderValue::from_static("application/json"), body })
            }
            (Want::Either, false) => {
                let content_type =
                    content_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
                Ok(Answer::Whole { content_type, body: read(response.into_body(), MAX_ANSWER).await? })
            }
        }
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

async fn read_error(response: Response<reqwest::Body>) -> Fault {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(header::RETRY_AFTER).cloned();
    let body = tokio::time::timeout(ERROR_TIME, read(response.into_body(), MAX_ERROR)).await;
    let body = body.unwrap_or(Ok(bytes::Bytes::new())).unwrap_or_default();
    let mut error = EngineError::parse(status, &body);
    error.retry_after = retry_after;
    Fault::Status(Box::new(error))
}
