//! The way of a request through the proxy, the same for all routes.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use engine::{Answer, Asked, Fault, Report, Want};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use runtime::Phase;
use sse::RelayBody;
use tokio::time::Instant;

use super::{
    Ai, Inner, Outcome, Protocol,
    cache::{Status, Wish},
    failure::{Failure, Stop},
    headers,
    in_flight::InFlight,
    request::Call,
    reservation::{Reservation, renewal_interval},
    source::{Opening, Source},
    watch::StreamWatch,
};
use crate::{Error, admission::Pending, body};

/// The scope that an API key needs for AI routes.
pub(super) const SCOPE: &str = "ai";

/// Forwards a request with a body to `path` below the engine's base URL.
pub(super) async fn forward<'a>(
    ai: &Ai,
    protocol: Protocol,
    path: impl IntoIterator<Item = &'a str>,
    pending: Pending,
    request: Request,
) -> Result<Response, Failure> {
    let started = Instant::now();
    // What stands below /v1/ai/ is one engine's own, and means nothing to the others.
    let only = match protocol {
        Protocol::Passthrough => Some(ai.inner.config.passthrough.as_deref().ok_or_else(Error::not_found)?),
        _ => None,
    };
    let (parts, body) = request.into_parts();
    let wish = Wish::read(&parts.headers)?;
    let body = read_body(&parts.headers, body, ai.inner.config.max_body_bytes).await?;
    let call = Call::parse(protocol, &body)?;
    if only.is_none() && !ai.inner.engines.serves(&call.model) {
        return Err(Fault::UnknownModel(call.model).into());
    }
    let to_engine =
        engine::Request::post(path, call.body.clone()).model(&call.model).client_headers(&parts.headers);
    let to_engine = match only {
        Some(engine) => to_engine.only(engine),
        None => to_engine,
    };
    let request = admit(ai, protocol, pending, &call, to_engine.asked(), started).await?;
    let to_engine = request.span().in_scope(|| to_engine.traced()).request_id(request.request_id());
    let want = match protocol {
        _ if call.stream => Want::Stream,
        Protocol::Passthrough if accepts_stream(&parts.headers) => Want::Stream,
        Protocol::Passthrough => Want::Either,
        _ => Want::Json,
    };
    let plan = ai.inner.cache.plan(wish, protocol, &call, &parts.headers, request.user_id());
    let engines = ai.inner.engines.clone();
    // Boxed, because it is large and passes through many hands.
    let answering = Box::pin(async move { engines.call(to_engine, want).await });
    let (mut response, cached) = if want == Want::Stream {
        let response = streamed(ai, protocol, call.strip_usage, request, answering).await?;
        (response, plan.unused())
    } else {
        whole(ai, protocol, request, ai.inner.cache.answer(plan, answering)).await?
    };
    cached.tell(response.headers_mut());
    Ok(response)
}

/// The engines' models, or one of them. Costs no tokens.
pub(super) async fn models(
    ai: &Ai,
    id: Option<&str>,
    headers: &HeaderMap,
    request_id: &str,
) -> Result<Response, Failure> {
    let segments = segments(id.unwrap_or_default()).ok_or_else(Error::not_found)?;
    let request = engine::Request::get(std::iter::once("models").chain(segments));
    let request = request.client_headers(headers).request_id(request_id);
    let answer = match id {
        Some(id) => ai.inner.engines.model(request, id).await?,
        None => ai.inner.engines.models(request).await?,
    };
    match answer {
        Answer::Whole { content_type, body } => Ok(document(content_type, body)),
        Answer::Stream(_) => Err(Fault::Unexpected("it is an event stream").into()),
    }
}

/// The segments of a path that came from a client; `None` when it tries to leave its place.
pub(super) fn segments(path: &str) -> Option<impl Iterator<Item = &str>> {
    let fine = |segment: &str| !matches!(segment, "." | "..") && !segment.chars().any(char::is_control);
    let trimmed = path.trim_end_matches('/');
    trimmed.split('/').all(fine).then(|| trimmed.split('/').filter(|segment| !segment.is_empty()))
}

/// Passes the request by the limits, with one round trip. What they took is in the guard from the start.
async fn admit(
    ai: &Ai,
    protocol: Protocol,
    pending: Pending,
    call: &Call,
    asked: Asked,
    started: Instant,
) -> Result<InFlight, Failure> {
    let mut reservation = Reservation::new(&ai.inner);
    let decided = pending.admit(|admission, caller| {
        reservation.add_to(admission, caller, call.prompt_tokens, call.completion_limit);
    });
    // A big future that is soon over: not part of the one that waits for the engine.
    let decided = Box::pin(decided).await;
    let (caller, admitted) = match decided {
        Ok(decided) => decided,
        Err(error) => {
            reservation.refused();
            return Err(error.into());
        }
    };
    reservation.admitted(&admitted);
    caller.require_scope(SCOPE)?;
    Ok(InFlight::begin(ai, protocol, &caller, call, asked, reservation, started))
}

/// Answers with an event stream. Its head waits for the engine's first event, but not for long.
async fn streamed(
    ai: &Ai,
    protocol: Protocol,
    strip_usage: bool,
    mut request: InFlight,
    answering: impl Future<Output = Result<Answer, Fault>> + Send + 'static,
) -> Result<Response, Failure> {
    let Inner { config, lifecycle, .. } = &*ai.inner;
    // One allocation per stream: the call may have to go on inside the body.
    let mut opening: Opening = Box::pin(answering);
    let source = tokio::select! {
        answer = &mut opening => match answer {
            Ok(Answer::Stream(stream)) => Source::Open(stream),
            Ok(Answer::Whole { .. }) => return Err(failed(&mut request, Fault::Unexpected("it is not an event stream").into())),
            Err(fault) => return Err(failed(&mut request, fault.into())),
        },
        () = tokio::time::sleep(config.header_hold) => Source::Opening(opening),
        () = lifecycle.reached(Phase::LastCall) => return Err(failed(&mut request, Stop::ShuttingDown)),
    };
    let watch = StreamWatch::new(request, protocol, strip_usage, config, lifecycle);
    let mut response = Response::new(Body::new(RelayBody::new(source, watch)));
    headers::event_stream(response.headers_mut());
    Ok(response)
}

/// Answers with a document, or with a stream where the engine decides.
async fn whole(
    ai: &Ai,
    protocol: Protocol,
    mut request: InFlight,
    answering: impl Future<Output = Result<(Answer, Status), Fault>> + Send,
) -> Result<(Response, Status), Failure> {
    let Inner { config, lifecycle, .. } = &*ai.inner;
    let mut answering = std::pin::pin!(answering);
    let period = renewal_interval(config.heartbeat);
    let mut renewal = tokio::time::interval_at(Instant::now() + period, period);
    let answer = loop {
        tokio::select! {
            answer = &mut answering => break answer.map_err(Stop::Engine),
            _ = renewal.tick() => request.renew(),
            () = lifecycle.reached(Phase::LastCall) => break Err(Stop::ShuttingDown),
        }
        if request.is_revoked() {
            break Err(Stop::Revoked);
        }
    };
    match answer {
        Ok((Answer::Whole { content_type, body }, cached)) => {
            if matches!(cached, Status::Hit { .. }) {
                request.answered_from_cache();
            } else if let Some(usage) = Report::parse(&body).ok().and_then(|report| report.usage()) {
                request.report(usage);
            }
            request.end(Outcome::Ok);
            Ok((document(content_type, body), cached))
        }
        Ok((Answer::Stream(stream), cached)) => {
            let watch = StreamWatch::new(request, protocol, false, config, lifecycle);
            let mut response = Response::new(Body::new(RelayBody::new(Source::Open(stream), watch)));
            headers::event_stream(response.headers_mut());
            Ok((response, cached))
        }
        Err(stop) => Err(failed(&mut request, stop)),
    }
}

fn failed(request: &mut InFlight, stop: Stop) -> Failure {
    request.fail(&stop);
    stop.into()
}

/// A JSON document of the engine.
fn document(content_type: HeaderValue, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// Reads a request's body: JSON, not compressed, not too long.
pub(super) async fn read_body(headers: &HeaderMap, content: Body, limit: usize) -> Result<Bytes, Error> {
    body::refuse_compressed(headers)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let detail = "The body must be JSON, with `Content-Type: application/json`.";
        return Err(Error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    // Told by its length, a body that is too long is refused before any of it is read.
    if content.size_hint().lower() > limit as u64 {
        return Err(body::too_long(limit));
    }
    match Limited::new(content, limit).collect().await {
        Ok(content) => Ok(content.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(body::too_long(limit)),
        Err(error) => Err(body::incomplete(&*error)),
    }
}
