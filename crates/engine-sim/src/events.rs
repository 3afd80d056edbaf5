//! `POST /v1/ai/stream`: an event stream as a FastAPI service would define it for itself: named events `token` and `done`, each
//! with an id.

use std::iter::once;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use crate::chat::close;
use crate::error::{ApiError, parse_json};
use crate::plan::Plan;
use crate::script::{Answer, Script, Step};
use crate::text::{Text, count_tokens, wants_unicode};

#[derive(Debug, Deserialize)]
struct StreamRequest {
    prompt: Option<String>,
    max_tokens: Option<u32>,
}

pub(crate) fn answer(seed: u64, plan: &Plan, body: &[u8]) -> Result<Answer, ApiError> {
    let request: StreamRequest = parse_json(body)?;
    let prompt = request.prompt.ok_or_else(|| ApiError::bad_param("prompt", "prompt must be a text"))?;
    let unicode = plan.unicode.unwrap_or_else(|| wants_unicode(&prompt));
    let count = request.max_tokens.map_or(plan.tokens, |limit| plan.tokens.min(limit as usize));
    let min_bytes = plan.chunk_bytes;
    let tokens =
        Text::new(seed, &prompt, 0, unicode).take(count).zip(1_usize..).flat_map(move |(token, id)| {
            let mut event = format!("id: {id}\nevent: token\ndata: {{\"text\":\"{token}\"");
            close(&mut event, min_bytes);
            [Step::Tick, Step::Send(event.into())]
        });
    let done = json!({
        "finish_reason": if count < plan.tokens { "length" } else { "stop" },
        "simulation": true,
        "usage": {"prompt_tokens": count_tokens(&prompt), "completion_tokens": count},
    });
    Ok(Answer::Stream(Script {
        steps: Box::new(once(Step::Pause(plan.first_token)).chain(tokens)),
        closing: format!("id: {}\nevent: done\ndata: {done}\n\n", count + 1).into(),
        failure: Bytes::from_static(
            b"event: error\ndata: {\"detail\":\"simulated fault: in-band error\"}\n\n",
        ),
    }))
}
