//! `POST /v1/chat/completions`, in one piece or as a stream of `chat.completion.chunk`.

use std::iter::once;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{ApiError, parse_json};
use crate::hash::fnv1a;
use crate::plan::Plan;
use crate::prompt::{self, Message};
use crate::script::{Answer, Script, Step};
use crate::text::{MAX_WHOLE_TOKENS, Text, count_tokens, wants_unicode};

/// 2023-11-14; constant, so that equal requests get equal bytes.
pub(crate) const CREATED: u64 = 1_700_000_000;
const MAX_CHOICES: usize = 128;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    n: Option<usize>,
    seed: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// Everything that the two forms of the answer share.
struct Completion {
    id: String,
    model: String,
    texts: Vec<Text>,
    tokens: usize,
    prompt_tokens: usize,
    finish_reason: &'static str,
}

pub(crate) fn answer(seed: u64, plan: &Plan, body: &[u8]) -> Result<Answer, ApiError> {
    let request: ChatRequest = parse_json(body)?;
    let messages = request.messages.filter(|messages| !messages.is_empty());
    let messages =
        messages.ok_or_else(|| ApiError::bad_param("messages", "messages must be a list of messages"))?;
    let choices = request.n.unwrap_or(1);
    if !(1..=MAX_CHOICES).contains(&choices) {
        return Err(ApiError::bad_param("n", format!("n must be between 1 and {MAX_CHOICES}")));
    }
    let limit = request.max_completion_tokens.or(request.max_tokens);
    if limit == Some(0) {
        return Err(ApiError::bad_param("max_tokens", "max_tokens must be at least 1"));
    }
    let prompt = prompt::join(&messages);
    let seed = seed ^ request.seed.unwrap_or(0) as u64;
    let unicode = plan.unicode.unwrap_or_else(|| wants_unicode(&prompt));
    let tokens = limit.map_or(plan.tokens, |limit| plan.tokens.min(limit as usize));
    let completion = Completion {
        id: format!("chatcmpl-sim-{:016x}", fnv1a(seed, prompt.as_bytes())),
        model: request.model.unwrap_or_else(|| "sim-small".to_owned()),
        texts: (0..choices).map(|choice| Text::new(seed, &prompt, choice, unicode)).collect(),
        tokens,
        prompt_tokens: count_tokens(&prompt),
        finish_reason: if tokens < plan.tokens { "length" } else { "stop" },
    };
    if request.stream.unwrap_or(false) {
        let include_usage = request.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        Ok(Answer::Stream(completion.stream(include_usage, plan)))
    } else if completion.tokens * choices > MAX_WHOLE_TOKENS {
        Err(ApiError::bad_request(format!("more than {MAX_WHOLE_TOKENS} tokens need a stream")))
    } else {
        Ok(completion.json())
    }
}

impl Completion {
    fn usage(&self) -> Value {
        let completion_tokens = self.tokens * self.texts.len();
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        })
    }

    fn json(self) -> Answer {
        let choice = |(index, text): (usize, &Text)| {
            let content: String = text.clone().take(self.tokens).collect();
            json!({
                "index": index,
                "message": {"role": "assistant", "content": content, "refusal": null},
                "logprobs": null,
                "finish_reason": self.finish_reason,
            })
        };
        let body = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": CREATED,
            "model": self.model,
            "system_fingerprint": "engine-sim",
            "choices": self.texts.iter().enumerate().map(choice).collect::<Vec<_>>(),
            "usage": self.usage(),
        });
        Answer::Json { body: body.to_string().into_bytes(), tokens: self.tokens }
    }

    fn stream(self, include_usage: bool, plan: &Plan) -> Script {
        let chunk = Chunk {
            head: format!(
                r#"data: {{"id":"{}","object":"chat.completion.chunk","created":{CREATED},"model":{},"system_fingerprint":"engine-sim","choices":["#,
                self.id,
                json!(self.model),
            ),
            tail: if include_usage { r#"],"usage":null"# } else { "]" },
            min_bytes: plan.chunk_bytes,
        };
        let usage = include_usage
            .then(|| Step::Send(format!("{}],\"usage\":{}}}\n\n", chunk.head, self.usage()).into()));
        let choices = 0..self.texts.len();
        let roles: Vec<Step> = choices
            .clone()
            .map(|index| chunk.step(index, r#""role":"assistant","content":"""#, "null"))
            .collect();
        let finish_reason = format!("\"{}\"", self.finish_reason);
        let finishes: Vec<Step> = choices.map(|index| chunk.step(index, "", &finish_reason)).collect();
        let mut texts = self.texts;
        // One step per call: a tick for each token, then the token of each choice.
        let (mut choice, mut left) = (texts.len(), self.tokens);
        let tokens = std::iter::from_fn(move || {
            if choice == texts.len() {
                left = left.checked_sub(1)?;
                choice = 0;
                return Some(Step::Tick);
            }
            let token = texts[choice].next()?;
            let step = chunk.step(choice, &["\"content\":\"", token, "\""].concat(), "null");
            choice += 1;
            Some(step)
        });
        Script {
            steps: Box::new(
                once(Step::Pause(plan.first_token)).chain(roles).chain(tokens).chain(finishes).chain(usage),
            ),
            closing: Bytes::from_static(b"data: [DONE]\n\n"),
            failure: failure(),
        }
    }
}

/// What all chunks of a stream have in common. Put together by hand: this is the path that load tests take.
struct Chunk {
    head: String,
    tail: &'static str,
    min_bytes: usize,
}

impl Chunk {
    fn step(&self, index: usize, delta: &str, finish_reason: &str) -> Step {
        let index = if index == 0 { "0".to_owned() } else { index.to_string() };
        let mut event = String::with_capacity((self.head.len() + delta.len() + 128).max(self.min_bytes));
        for part in [
            &self.head,
            "{\"index\":",
            &index,
            ",\"delta\":{",
            delta,
            "},\"logprobs\":null,\"finish_reason\":",
            finish_reason,
            "}",
            self.tail,
        ] {
            event.push_str(part);
        }
        close(&mut event, self.min_bytes);
        Step::Send(event.into())
    }
}

/// Ends the JSON object and the event, padded to a size with the field that OpenAI pads with.
pub(crate) fn close(event: &mut String, min_bytes: usize) {
    const END: &str = "}\n\n";
    const PAD: &str = ",\"obfuscation\":\"";
    if let Some(missing) = min_bytes.checked_sub(event.len() + PAD.len() + 1 + END.len()) {
        event.push_str(PAD);
        event.extend(std::iter::repeat_n('x', missing));
        event.push('"');
    }
    event.push_str(END);
}

/// An error in the middle of a stream, as OpenAI-compatible engines send it.
fn failure() -> Bytes {
    let error = ApiError::simulated(http::StatusCode::INTERNAL_SERVER_ERROR).object();
    format!("data: {error}\n\n").into()
}
