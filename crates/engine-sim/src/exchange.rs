//! One request of the engine's API: read, settled, answered, with the fault in it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::error::{ApiError, full_response, json_response};
use crate::plan::Plan;
use crate::script::{Answer, Player, Script, SimBody, Step};
use crate::server::Engine;
use crate::stats::{Exchange, Outcome, Phase};
use crate::wire::Link;
use crate::{Fault, SimConfig, chat, effect, embeddings, events, models, responses};

const MAX_BODY: usize = 64 << 20;
/// Into how many bytes a JSON answer is cut when a fault needs chunks.
const JSON_PIECE: usize = 64;

/// Answers a request to `/v1/...`. An error means: no answer, the connection ends.
pub(crate) async fn answer(
    engine: &Engine,
    link: &Arc<Link>,
    request: Request<Incoming>,
) -> io::Result<Response<SimBody>> {
    let mut exchange = engine.recorder.request(request.uri().path());
    let (parts, body) = request.into_parts();
    let settled = match read(body).await? {
        Ok(body) => {
            engine.recorder.seen(&parts, &body);
            settle(engine, &parts, &body)
        }
        Err(error) => Err(error),
    };
    match settled {
        Ok((plan, answer)) => deliver(plan, answer, link, exchange).await,
        Err(error) => {
            exchange.finish(Outcome::Completed);
            Ok(error.response())
        }
    }
}

/// The outer error: the client left.
pub(crate) async fn read(body: Incoming) -> io::Result<Result<Bytes, ApiError>> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(Ok(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {MAX_BODY} bytes");
            Ok(Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)))
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

/// What will be answered, and how.
fn settle(engine: &Engine, parts: &Parts, body: &[u8]) -> Result<(Plan, Answer), ApiError> {
    authorize(&engine.config, parts)?;
    let mut plan = Plan::new(&engine.config);
    engine
        .control
        .apply(&mut plan)
        .and_then(|()| plan.set_from_headers(&parts.headers))
        .and_then(|()| plan.set_from_body(body))
        .map_err(ApiError::bad_request)?;
    if matches!(plan.fault, Some(Fault::Refuse(_))) {
        return Err(ApiError::bad_request("fault refuse works only by the control route"));
    }
    let answer = route(engine.config.seed, &plan, parts, body)?;
    Ok((plan, answer))
}

fn authorize(config: &SimConfig, parts: &Parts) -> Result<(), ApiError> {
    let Some(key) = &config.api_key else { return Ok(()) };
    let given = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    // Not in constant time: the key of a simulation protects nothing.
    if given.and_then(|value| value.strip_prefix("Bearer ")) == Some(key) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "Incorrect API key provided.").code("invalid_api_key"))
}

fn route(seed: u64, plan: &Plan, parts: &Parts, body: &[u8]) -> Result<Answer, ApiError> {
    let path = parts.uri.path();
    match (parts.method.as_str(), path) {
        ("POST", "/v1/chat/completions") => chat::answer(seed, plan, body),
        ("POST", "/v1/responses") => responses::answer(seed, plan, body),
        ("POST", "/v1/embeddings") => embeddings::answer(body),
        ("POST", "/v1/ai/stream") => events::answer(seed, plan, body),
        ("GET", "/v1/models") => Ok(models::list()),
        ("GET", _) if let Some(id) = path.strip_prefix("/v1/models/") => models::get(id),
        (_, "/v1/chat/completions" | "/v1/responses" | "/v1/embeddings" | "/v1/ai/stream" | "/v1/models") => {
            Err(ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not allowed here", parts.method),
            ))
        }
        _ => Err(ApiError::new(StatusCode::NOT_FOUND, format!("unknown route: {} {path}", parts.method))),
    }
}

/// Everything that takes time or can go wrong. Dropped while it waits, the request was cancelled before its headers.
async fn deliver(
    plan: Plan,
    answer: Answer,
    link: &Arc<Link>,
    mut exchange: Exchange,
) -> io::Result<Response<SimBody>> {
    let whole = |mut exchange: Exchange, response| {
        exchange.finish(Outcome::Completed);
        Ok(response)
    };
    match &plan.fault {
        Some(Fault::HangBeforeHeaders) => match std::future::pending::<Infallible>().await {},
        Some(fault @ (Fault::CloseBeforeHeaders | Fault::ResetBeforeHeaders)) => {
            if *fault == Fault::ResetBeforeHeaders {
                link.reset_on_close();
            }
            exchange.finish(Outcome::Faulted);
            return Err(io::Error::other("simulated fault"));
        }
        Some(Fault::Status(status)) => {
            tokio::time::sleep(plan.first_token).await;
            return whole(exchange, ApiError::simulated(*status).response());
        }
        Some(Fault::Html) => {
            let page =
                "<!doctype html><title>simulated fault</title><h1>This is no API (a simulated fault)</h1>";
            return whole(exchange, full_response(StatusCode::OK, "text/html; charset=utf-8", page));
        }
        Some(Fault::Redirect(url)) => {
            let mut response = full_response(StatusCode::TEMPORARY_REDIRECT, "text/plain", "simulated fault");
            response.headers_mut().insert(header::LOCATION, url.clone());
            return whole(exchange, response);
        }
        Some(Fault::SlowHeaders(interval)) => link.drip_head(*interval),
        _ => {}
    }
    let (content_type, script) = match answer {
        Answer::Stream(script) => ("text/event-stream; charset=utf-8", script),
        Answer::Json { body, tokens } => {
            if tokens > 0 {
                let more = u32::try_from(tokens - 1).unwrap_or(u32::MAX);
                tokio::time::sleep(plan.first_token + plan.token_interval.saturating_mul(more)).await;
            }
            if matches!(plan.fault, None | Some(Fault::SlowHeaders(_))) {
                return whole(exchange, json_response(StatusCode::OK, body));
            }
            ("application/json", pieces(body))
        }
    };
    exchange.phase = Phase::Streaming;
    let steps = effect::apply(plan.fault.as_ref(), script);
    let gzip = plan.fault == Some(Fault::Gzip);
    let mut response =
        Response::new(Either::Right(Player::new(steps, link.clone(), exchange, plan.token_interval)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

/// A JSON document as chunks, so that a fault of streams has something to break. Its time has already passed.
fn pieces(body: Vec<u8>) -> Script {
    let body = Bytes::from(body);
    let cuts = (0..body.len()).step_by(JSON_PIECE);
    let steps = cuts.map(move |start| Step::Send(body.slice(start..body.len().min(start + JSON_PIECE))));
    Script { steps: Box::new(steps), closing: Bytes::new(), failure: Bytes::new() }
}
