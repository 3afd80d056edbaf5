//! `POST /v1/responses`: a protocol of its own, with named and numbered events and no `[DONE]`.

use std::iter::once;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::chat::{CREATED, close};
use crate::error::{ApiError, parse_json};
use crate::hash::fnv1a;
use crate::plan::Plan;
use crate::prompt::{self, Message};
use crate::script::{Answer, Script, Step};
use crate::text::{MAX_WHOLE_TOKENS, Text, count_tokens, wants_unicode};

#[derive(Debug, Deserialize)]
struct ResponsesRequest {
    model: Option<String>,
    input: Option<Input>,
    instructions: Option<String>,
    stream: Option<bool>,
    max_output_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Message>),
}

/// Everything that the two forms of the answer share.
struct Output {
    hash: u64,
    model: String,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    text: Text,
    tokens: usize,
    input_tokens: usize,
    cut: bool,
}

pub(crate) fn answer(seed: u64, plan: &Plan, body: &[u8]) -> Result<Answer, ApiError> {
    let request: ResponsesRequest = parse_json(body)?;
    let prompt = match request.input {
        Some(Input::Text(text)) => text,
        Some(Input::Items(items)) => prompt::join(&items),
        None => return Err(ApiError::bad_param("input", "input must be a text or a list of items")),
    };
    if request.max_output_tokens == Some(0) {
        return Err(ApiError::bad_param("max_output_tokens", "max_output_tokens must be at least 1"));
    }
    let unicode = plan.unicode.unwrap_or_else(|| wants_unicode(&prompt));
    let tokens = request.max_output_tokens.map_or(plan.tokens, |limit| plan.tokens.min(limit as usize));
    if tokens > MAX_WHOLE_TOKENS {
        return Err(ApiError::bad_request(format!("a response is at most {MAX_WHOLE_TOKENS} tokens long")));
    }
    let output = Output {
        hash: fnv1a(seed, prompt.as_bytes()),
        model: request.model.unwrap_or_else(|| "sim-small".to_owned()),
        text: Text::new(seed, &prompt, 0, unicode),
        tokens,
        input_tokens: count_tokens(&prompt) + request.instructions.as_deref().map_or(0, count_tokens),
        instructions: request.instructions,
        max_output_tokens: request.max_output_tokens,
        cut: tokens < plan.tokens,
    };
    if request.stream.unwrap_or(false) {
        return Ok(Answer::Stream(output.stream(plan)));
    }
    let body = output.response(output.end()).to_string().into_bytes();
    Ok(Answer::Json { body, tokens: output.tokens })
}

impl Output {
    fn message_id(&self) -> String {
        format!("msg_sim_{:016x}", self.hash)
    }

    fn content(&self) -> String {
        self.text.clone().take(self.tokens).collect()
    }

    /// How a response ends: `max_output_tokens` makes it incomplete.
    fn end(&self) -> &'static str {
        if self.cut { "incomplete" } else { "completed" }
    }

    fn part(text: &str) -> Value {
        json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
    }

    fn message(&self, status: &str, content: &[Value]) -> Value {
        json!({"id": self.message_id(), "type": "message", "role": "assistant", "status": status, "content": content})
    }

    /// The response object in the given status.
    fn response(&self, status: &str) -> Value {
        let running = status == "in_progress";
        let usage = json!({
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + self.tokens,
        });
        let output =
            if running { vec![] } else { vec![self.message(status, &[Self::part(&self.content())])] };
        json!({
            "id": format!("resp_sim_{:016x}", self.hash),
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": null,
            "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "store": false,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": (!running).then_some(usage),
            "metadata": {"simulation": "true"},
        })
    }

    fn stream(self, plan: &Plan) -> Script {
        let id = self.message_id();
        let place = json!({"item_id": id, "output_index": 0, "content_index": 0});
        let opening = [
            event(0, "response.created", json!({"response": self.response("in_progress")})),
            event(1, "response.in_progress", json!({"response": self.response("in_progress")})),
            event(
                2,
                "response.output_item.added",
                json!({"output_index": 0, "item": self.message("in_progress", &[])}),
            ),
            event(3, "response.content_part.added", with(&place, json!({"part": Self::part("")}))),
        ];
        let first_delta = opening.len();
        let min_bytes = plan.chunk_bytes;
        let head = format!(
            "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"item_id\":\"{id}\",\
             \"output_index\":0,\"content_index\":0,\"logprobs\":[],\"sequence_number\":"
        );
        let deltas = self.text.clone().take(self.tokens).enumerate().flat_map(move |(index, token)| {
            let number = (first_delta + index).to_string();
            let mut event = [&head, &*number, ",\"delta\":\"", token, "\""].concat();
            close(&mut event, min_bytes);
            [Step::Tick, Step::Send(event.into())]
        });
        let last = first_delta + self.tokens;
        let closing_name = if self.cut { "response.incomplete" } else { "response.completed" };
        let text = self.content();
        let part = Self::part(&text);
        let item = self.message(self.end(), std::slice::from_ref(&part));
        let endings = [
            event(last, "response.output_text.done", with(&place, json!({"text": text, "logprobs": []}))),
            event(last + 1, "response.content_part.done", with(&place, json!({"part": part}))),
            event(last + 2, "response.output_item.done", json!({"output_index": 0, "item": item})),
        ];
        Script {
            steps: Box::new(
                once(Step::Pause(plan.first_token))
                    .chain(opening.map(Step::Send))
                    .chain(deltas)
                    .chain(endings.map(Step::Send)),
            ),
            closing: event(last + 3, closing_name, json!({"response": self.response(self.end())})),
            failure: event(
                last,
                "error",
                json!({"code": "server_error", "message": "simulated fault: in-band error", "param": null}),
            ),
        }
    }
}

fn with(base: &Value, extra: Value) -> Value {
    let mut merged = base.clone();
    if let (Value::Object(merged), Value::Object(extra)) = (&mut merged, extra) {
        merged.extend(extra);
    }
    merged
}

/// A named event; its data repeats the name as `type`, as OpenAI's does.
fn event(number: usize, name: &str, data: Value) -> Bytes {
    let data = with(&json!({"type": name, "sequence_number": number}), data);
    format!("event: {name}\ndata: {data}\n\n").into()
}
