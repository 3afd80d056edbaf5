//! `GET /v1/models` and `GET /v1/models/{id}`. The other routes accept any model name: a gateway may map names as it likes.

use http::StatusCode;
use serde_json::{Value, json};

use crate::chat::CREATED;
use crate::error::ApiError;
use crate::script::Answer;

const MODELS: [&str; 3] = ["sim-small", "sim-large", "sim-embedding"];

pub(crate) fn list() -> Answer {
    json_answer(&json!({"object": "list", "data": MODELS.map(model)}))
}

pub(crate) fn get(id: &str) -> Result<Answer, ApiError> {
    let id = MODELS.into_iter().find(|known| *known == id).ok_or_else(|| {
        let message = format!("The model `{id}` does not exist; known: {}", MODELS.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, message).code("model_not_found")
    })?;
    Ok(json_answer(&model(id)))
}

fn model(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": CREATED, "owned_by": "engine-sim (simulation)"})
}

fn json_answer(value: &Value) -> Answer {
    Answer::Json { body: value.to_string().into_bytes(), tokens: 0 }
}
