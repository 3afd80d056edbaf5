//! Asking the engine for embeddings (`POST /embeddings` of the OpenAI API).

use std::time::Duration;

use engine::{Answer, Engines, Fault, Request, Want};
use jobs::JobId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Numbers for texts, in their order.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    /// What they cost.
    pub tokens: i64,
    /// The engine did not count; the number is ours.
    pub estimated: bool,
    /// Which engine answered.
    pub engine: String,
    pub duration_ms: i32,
}

/// Why there are none.
#[derive(Debug)]
pub(crate) enum NotEmbedded {
    /// The request itself will not do; the text is for whoever asked.
    Refused(String),
    /// Another time; the engine may have said when.
    Unavailable(String, Option<Duration>),
}

#[derive(Serialize)]
struct Wanted<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Given {
    data: Vec<Vector>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Vector {
    index: usize,
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
}

/// Under this id the engine's log has the requests of a job.
pub(crate) fn request_id(job: JobId) -> String {
    format!("job-{job}")
}

/// Embeds a few texts in one request.
pub(crate) async fn embed(
    engines: &Engines,
    model: &str,
    texts: &[&str],
    job: JobId,
) -> Result<Embedded, NotEmbedded> {
    let wanted = Wanted { model, input: texts, encoding_format: "float" };
    let body = serde_json::to_vec(&wanted).map_err(|e| NotEmbedded::Refused(e.to_string()))?;
    let request = Request::post(["embeddings"], body.into()).model(model).request_id(&request_id(job));
    let (asked, begun) = (request.asked(), Instant::now());
    let body = match engines.call(request, Want::Json).await {
        Ok(Answer::Whole { body, .. }) => body,
        Ok(Answer::Stream(_)) => return Err(unusable("a stream")),
        Err(fault) => return Err(told(&fault)),
    };
    let given: Given = serde_json::from_slice(&body).map_err(|_| unusable("not of the form"))?;
    let tokens = given.usage.as_ref().map(|usage| i64::from(usage.prompt_tokens));
    let estimate = texts.iter().map(|text| text.len()).sum::<usize>().div_ceil(4);
    Ok(Embedded {
        vectors: in_order(given.data, texts.len())?,
        tokens: tokens.unwrap_or(i64::try_from(estimate).unwrap_or(i64::MAX)),
        estimated: tokens.is_none(),
        engine: asked.name().map_or_else(String::new, |name| name.to_string()),
        duration_ms: i32::try_from(begun.elapsed().as_millis()).unwrap_or(i32::MAX),
    })
}

/// One vector for each text, all of one length, all numbers.
fn in_order(data: Vec<Vector>, texts: usize) -> Result<Vec<Vec<f32>>, NotEmbedded> {
    let mut vectors = vec![Vec::new(); texts];
    for Vector { index, embedding } in data {
        let Some(place) = vectors.get_mut(index) else { return Err(unusable("a vector too many")) };
        *place = embedding;
    }
    let length = vectors.first().map_or(0, Vec::len);
    if length == 0 || vectors.iter().any(|v| v.len() != length || v.iter().any(|x| !x.is_finite())) {
        return Err(unusable("vectors are missing, or not alike"));
    }
    Ok(vectors)
}

fn unusable(what: &str) -> NotEmbedded {
    NotEmbedded::Unavailable(format!("its answer is unusable: {what}"), None)
}

fn told(fault: &Fault) -> NotEmbedded {
    // Too fast is no fault of the text, and the credential is ours.
    if fault.is_clients() && !matches!(fault.status().as_u16(), 408 | 409 | 429) {
        return NotEmbedded::Refused(fault.message().into_owned());
    }
    // An engine says when; our own breaker does not know, and asking every second would use the attempts up.
    let wait = match fault {
        Fault::Status(error) => {
            error.retry_after.as_ref().and_then(|value| value.to_str().ok()?.parse().ok())
        }
        _ => None,
    };
    let text = format!("{} ({})", fault.code(), fault.cause().unwrap_or_default());
    NotEmbedded::Unavailable(text, wait.map(|seconds: u64| Duration::from_secs(seconds.clamp(1, 3_600))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(index: usize, embedding: &[f32]) -> Vector {
        Vector { index, embedding: embedding.to_vec() }
    }

    #[test]
    fn vectors_are_put_in_the_order_of_the_texts_and_nothing_else_is_taken_for_an_answer() {
        let given = vec![vector(1, &[2.0]), vector(0, &[1.0])];
        assert_eq!(in_order(given, 2).unwrap(), [[1.0], [2.0]]);
        for wrong in [
            vec![],
            vec![vector(0, &[1.0])],
            vec![vector(0, &[1.0]), vector(0, &[1.0])],
            vec![vector(0, &[1.0]), vector(2, &[1.0])],
            vec![vector(0, &[1.0]), vector(1, &[1.0, 2.0])],
            vec![vector(0, &[]), vector(1, &[])],
            vec![vector(0, &[1.0]), vector(1, &[f32::INFINITY])],
        ] {
            assert!(matches!(in_order(wrong, 2), Err(NotEmbedded::Unavailable(..))));
        }
    }
}
