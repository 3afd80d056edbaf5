//! Calls to the engine: one HTTP client, a request built anew, a breaker, a retry.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use bytes::{Bytes, BytesMut};
use config::AiConfig;
use http_body_util::BodyExt as _;
use reqwest::{Client, redirect};
use runtime::Breaker;
use secrecy::ExposeSecret as _;
use sse::{MAX_EVENT, Relay, Verdict};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    engine_error::EngineError,
    failure::{Fault, Timer},
    usage::Report,
};

/// The engine's name in metrics and usage rows. There is one as yet.
pub(super) const ENGINE: &str = "default";
/// Failures in a row that open the breaker.
const FAILURES_TO_OPEN: u32 = 5;
/// Below uvicorn's and Node's 5 s: a connection that the engine is about to close is not used any more.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Largest answer that is no stream: a batch of embeddings as decimal numbers.
const MAX_ANSWER: usize = 64 << 20;
/// So much of an error is read, and so long.
const MAX_ERROR: usize = 64 << 10;
const ERROR_TIME: Duration = Duration::from_secs(5);
/// So many pieces of an unfinished first event are kept apart: a piece costs more than its bytes when those are few.
const MANY_PIECES: usize = 256;
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// What a client may say to the engine. Everything else, credentials and cookies above all, stays here.
const FORWARDED: [HeaderName; 2] = [header::ACCEPT_LANGUAGE, HeaderName::from_static("openai-beta")];

/// The engine and how to talk to it.
#[derive(Debug)]
pub(super) struct Engine {
    client: Client,
    base: Url,
    /// In every request.
    headers: HeaderMap,
    breaker: Breaker,
    budget: RetryBudget,
    config: AiConfig,
}

/// A request to the engine. Nothing of the client's is in it but the body and a few headers.
#[derive(Debug, Clone)]
pub(super) struct EngineRequest {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
}

/// What kind of answer will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// An event stream.
    Stream,
    /// A JSON document.
    Json,
    /// Whatever the engine sends.
    Either,
}

/// A successful answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// An event stream, with what was read of it until the first event.
    Stream(Opened),
    /// A document.
    Whole {
        /// Its type.
        content_type: HeaderValue,
        /// All of it.
        body: Bytes,
    },
}

/// An event stream that has begun.
#[derive(Debug)]
pub(super) struct Opened {
    /// What was read already.
    pub early: Vec<Bytes>,
    /// The rest.
    pub rest: reqwest::Body,
}

impl Engine {
    pub(super) fn from_config(config: &AiConfig) -> anyhow::Result<Self> {
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
        if let Some(key) = &config.engine_api_key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(Self {
            client,
            base: config.engine_url.clone(),
            headers,
            breaker: Breaker::new("engine", FAILURES_TO_OPEN),
            budget: RetryBudget::default(),
            config: config.clone(),
        })
    }

    /// A request to `path` below the engine's base URL. Takes over what may be taken over of the client's headers, and the
    /// current span as trace context.
    pub(super) fn request<'a>(
        &self,
        method: Method,
        path: impl IntoIterator<Item = &'a str>,
        client: &HeaderMap,
        request_id: &str,
        body: Bytes,
    ) -> EngineRequest {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let mut headers = self.headers.clone();
        for name in FORWARDED {
            if let Some(value) = client.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(crate::edge::X_REQUEST_ID, id);
        }
        if let Some(Ok(context)) = runtime::trace_context::current().map(HeaderValue::try_from) {
            headers.insert("traceparent", context);
        }
        if method == Method::POST {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        EngineRequest { method, url, headers, body }
    }

    /// Asks the engine. For a stream, waits for its first event, so that whatever goes wrong before it can still be told with
    /// a status, or tried again. Dropped in the middle, the request to the engine is cancelled.
    pub(super) async fn call(&self, mut request: EngineRequest, want: Want) -> Result<Answer, Fault> {
        let (accept, timer, limit) = match want {
            Want::Stream => ("text/event-stream", Timer::FirstToken, self.config.first_token_timeout),
            Want::Json => ("application/json", Timer::Response, self.config.response_timeout),
            Want::Either => ("text/event-stream, */*", Timer::Response, self.config.response_timeout),
        };
        request.headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        let deadline = Instant::now() + limit;
        self.budget.request();
        let mut retries = self.config.retries;
        loop {
            if !self.breaker.allows() {
                return Err(Fault::BreakerOpen);
            }
            let attempt = timeout_at(deadline, self.attempt(request.clone(), want)).await;
            let result = attempt.unwrap_or(Err(Fault::Timeout(timer)));
            match &result {
                Err(fault) if fault.blames_engine() => self.breaker.failure(),
                _ => self.breaker.success(),
            }
            match result {
                Err(fault) if fault.is_retryable() && retries > 0 && self.budget.retry() => {
                    retries -= 1;
                    metrics::counter!("ai_engine_retries_total").increment(1);
                    tracing::debug!(fault = %fault.code(), cause = fault.cause(), "the engine is asked again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn attempt(&self, request: EngineRequest, want: Want) -> Result<Answer, Fault> {
        let mut out = reqwest::Request::new(request.method, request.url);
        *out.headers_mut() = request.headers;
        if !request.body.is_empty() {
            *out.body_mut() = Some(request.body.into());
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
    pub(super) async fn check(&self) -> Result<(), String> {
        let request = self.request(Method::GET, ["models"], &HeaderMap::new(), "health", Bytes::new());
        match self.attempt(request, Want::Json).await {
            Ok(_) => Ok(()),
            Err(Fault::Status(error)) => match error.status {
                401 | 403 => Err("the engine refuses the credential: check ENGINE_API_KEY".to_owned()),
                // Some engines have no list of models.
                400..=499 => Ok(()),
                status => Err(format!("the engine answers {status}")),
            },
            Err(Fault::Unreachable(_)) => Err("cannot connect: check ENGINE_URL".to_owned()),
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
    let body = body.unwrap_or(Ok(Bytes::new())).unwrap_or_default();
    let mut error = EngineError::parse(status, &body);
    error.retry_after = retry_after;
    Fault::Status(Box::new(error))
}

async fn read(mut body: reqwest::Body, limit: usize) -> Result<Bytes, Fault> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Fault::Broken)?.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Err(Fault::Unexpected("it is too large"));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads until there is an event with data. Comments are none: engines send them while they load a model.
async fn first_event(mut rest: reqwest::Body) -> Result<Opened, Fault> {
    let mut early = Vec::new();
    let mut length = 0;
    let mut probe = Relay::default();
    let mut first = First::default();
    loop {
        let frame = rest.frame().await;
        let ended = frame.is_none();
        if let Some(frame) = frame {
            let Ok(data) = frame.map_err(Fault::Broken)?.into_data() else { continue };
            length += data.len();
            probe.push(data.clone(), &mut |event| first.look(&event));
            early.push(data);
            while probe.pop().is_some() {}
            if early.len() > MANY_PIECES {
                early = vec![early.concat().into()];
            }
        } else {
            probe.finish(&mut |event| first.look(&event));
        }
        match first {
            First::Error(error) => return Err(Fault::Status(error)),
            First::Event => return Ok(Opened { early, rest }),
            First::None if ended => return Err(Fault::Unexpected("it has no events")),
            // One event longer than anything that is held back: it has begun.
            First::None if length > MAX_EVENT => return Ok(Opened { early, rest }),
            First::None => {}
        }
    }
}

/// What a stream begins with.
#[derive(Debug, Default)]
enum First {
    #[default]
    None,
    Event,
    /// An error in place of an answer: as good as an error status.
    Error(Box<EngineError>),
}

impl First {
    fn look(&mut self, event: &sse::Event<'_>) -> Verdict {
        if let (Self::None, Some(data)) = (&self, event.data())
            && !data.is_empty()
        {
            *self = EngineError::from_event(&data).map_or(Self::Event, |error| Self::Error(Box::new(error)));
        }
        Verdict::Keep
    }
}

/// Retries must not multiply the load on an engine that fails under it: at most one request in ten is sent again, and a
/// handful after a quiet time.
#[derive(Debug)]
struct RetryBudget {
    /// In tenths.
    left: AtomicU32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { left: AtomicU32::new(Self::MOST) }
    }
}

impl RetryBudget {
    const RETRY: u32 = 10;
    const MOST: u32 = 10 * Self::RETRY;

    fn request(&self) {
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left < Self::MOST).then(|| left + 1));
    }

    fn retry(&self) -> bool {
        let take = |left: u32| left.checked_sub(Self::RETRY);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::default();
        let burst = (0..100).filter(|_| budget.retry()).count();
        assert_eq!(burst, 10, "after a quiet time");
        let retried = (0..1_000)
            .filter(|_| {
                budget.request();
                budget.retry()
            })
            .count();
        assert_eq!(retried, 100);
    }
}
