//! What is read of the bodies, for the API's description. Everything else in them is the engine's and is forwarded unread;
//! `ai::request` reads these fields where they stand.
#![expect(dead_code, reason = "described here, never filled: bodies are forwarded as they come")]

use utoipa::ToSchema;

/// A chat completion, with whatever else the engine understands.
#[derive(ToSchema)]
#[schema(example = json!({"model": "sim-small", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}))]
pub(super) struct ChatRequest {
    /// One of `GET /v1/models`.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    /// The conversation so far.
    #[schema(min_items = 1)]
    messages: Vec<serde_json::Value>,
    /// Answer as an event stream.
    stream: Option<bool>,
    /// How many answers.
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u64>,
    /// The most tokens of an answer. Less is reserved of your limits with it than without.
    #[schema(minimum = 1, maximum = 2_147_483_647_u32)]
    max_completion_tokens: Option<u64>,
}

/// A response, with whatever else the engine understands.
#[derive(ToSchema)]
#[schema(example = json!({"model": "sim-small", "stream": true, "input": "Hello!"}))]
pub(super) struct ResponsesRequest {
    /// One of `GET /v1/models`.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    /// Text, or a list of items.
    input: serde_json::Value,
    /// Answer as an event stream.
    stream: Option<bool>,
    /// The most tokens of the answer. Less is reserved of your limits with it than without.
    #[schema(minimum = 1, maximum = 2_147_483_647_u32)]
    max_output_tokens: Option<u64>,
}

/// What is to be embedded, with whatever else the engine understands.
#[derive(ToSchema)]
#[schema(example = json!({"model": "sim-embedding", "input": "Hello!"}))]
pub(super) struct EmbeddingsRequest {
    /// One of `GET /v1/models`.
    #[schema(min_length = 1, max_length = 256)]
    model: String,
    /// A text or a list of texts.
    input: serde_json::Value,
}

/// Any object: it is the engine's.
#[derive(ToSchema)]
#[schema(example = json!({"prompt": "Hello!"}))]
pub(super) struct AnyRequest {
    /// Answer as an event stream, where the engine knows it by this name.
    stream: Option<bool>,
}
