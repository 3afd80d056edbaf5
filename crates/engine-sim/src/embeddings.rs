//! `POST /v1/embeddings`: unit vectors from a hash of the input. Equal inputs are equal; otherwise they mean nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{ApiError, parse_json};
use crate::hash::{SplitMix, fnv1a};
use crate::script::Answer;
use crate::text::count_tokens;

const DIMENSIONS: usize = 1536;
const MAX_DIMENSIONS: usize = 4096;
const MAX_INPUTS: usize = 2048;

#[derive(Debug, Deserialize)]
struct EmbeddingsRequest {
    model: Option<String>,
    input: Option<Input>,
    dimensions: Option<usize>,
    encoding_format: Option<Encoding>,
}

/// Texts, or texts that the client has already turned into token numbers.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    /// Little-endian f32; what the official Python package asks for by default.
    Base64,
}

pub(crate) fn answer(body: &[u8]) -> Result<Answer, ApiError> {
    let request: EmbeddingsRequest = parse_json(body)?;
    let inputs: Vec<(Vec<u8>, usize)> = match request.input {
        Some(Input::Text(text)) => vec![text_input(text)],
        Some(Input::Texts(texts)) => texts.into_iter().map(text_input).collect(),
        Some(Input::Tokens(tokens)) => vec![token_input(&tokens)],
        Some(Input::TokenLists(lists)) => lists.iter().map(|tokens| token_input(tokens)).collect(),
        None => return Err(ApiError::bad_param("input", "input must be a text or a list of texts")),
    };
    let dimensions = request.dimensions.unwrap_or(DIMENSIONS);
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(ApiError::bad_param(
            "dimensions",
            format!("dimensions must be between 1 and {MAX_DIMENSIONS}"),
        ));
    }
    if !(1..=MAX_INPUTS).contains(&inputs.len()) || inputs.iter().any(|(bytes, _)| bytes.is_empty()) {
        return Err(ApiError::bad_param(
            "input",
            format!("input must be 1 to {MAX_INPUTS} texts, none empty"),
        ));
    }
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, (bytes, _))| {
            let vector = vector(bytes, dimensions);
            let embedding = match request.encoding_format.unwrap_or(Encoding::Float) {
                Encoding::Float => json!(vector),
                Encoding::Base64 => {
                    json!(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()))
                }
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let tokens: usize = inputs.iter().map(|(_, tokens)| tokens).sum();
    let body = json!({
        "object": "list",
        "data": data,
        "model": request.model.as_deref().unwrap_or("sim-embedding"),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    });
    Ok(Answer::Json { body: body.to_string().into_bytes(), tokens: 0 })
}

fn text_input(text: String) -> (Vec<u8>, usize) {
    let tokens = count_tokens(&text);
    (text.into_bytes(), tokens)
}

fn token_input(tokens: &[u32]) -> (Vec<u8>, usize) {
    (tokens.iter().flat_map(|token| token.to_le_bytes()).collect(), tokens.len())
}

/// A vector of length 1. Fewer dimensions are the beginning of the longer vector, normalised again, as in the OpenAI API.
fn vector(input: &[u8], dimensions: usize) -> Vec<f32> {
    let mut random = SplitMix(fnv1a(0, input));
    let raw: Vec<f64> =
        (0..dimensions).map(|_| (random.next() as f64 / u64::MAX as f64) * 2.0 - 1.0).collect();
    let length = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
    raw.into_iter().map(|x| (x / length) as f32).collect()
}
