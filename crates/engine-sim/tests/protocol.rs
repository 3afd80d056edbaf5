//! The protocols: shape, order, usage, errors, determinism.

mod common;

use base64::Engine as _;
use common::{chat, chunks, client, content, events, post, post_json, stream};
use engine_sim::{Sim, SimConfig};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";

async fn instant() -> Sim {
    Sim::start(SimConfig::instant()).await
}

fn whole(prompt: &str) -> Value {
    json!({"model": "sim-small", "messages": [{"role": "user", "content": prompt}]})
}

fn with(mut body: Value, name: &str, value: impl Into<Value>) -> Value {
    body[name] = value.into();
    body
}

#[tokio::test]
async fn equal_requests_get_equal_bytes_and_the_seed_matters() {
    let (first, second) = (instant().await, instant().await);
    let other = Sim::start(SimConfig { seed: 7, ..SimConfig::instant() }).await;
    for path in [CHAT, RESPONSES, "/v1/ai/stream"] {
        let body = json!({"stream": true, "messages": [{"role": "user", "content": "hi"}], "input": "hi", "prompt": "hi"});
        let text = stream(&first, path, &body).await;
        assert_eq!(text, stream(&second, path, &body).await);
        assert_ne!(text, stream(&other, path, &body).await);
    }
    let (_, seed_1) = post_json(&first, CHAT, &with(whole("hi"), "seed", 1)).await;
    let (_, seed_2) = post_json(&first, CHAT, &with(whole("hi"), "seed", 2)).await;
    assert_ne!(seed_1["choices"], seed_2["choices"]);
}

#[tokio::test]
async fn a_chat_answer_says_what_it_is_and_counts_tokens() {
    let sim = instant().await;
    let response = post(&sim, CHAT, &whole("12345678")).await;
    assert_eq!(response.headers()["x-engine-sim"], "simulation");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"], json!({"prompt_tokens": 2, "completion_tokens": 60, "total_tokens": 62}));
    assert!(body["choices"][0]["message"]["content"].as_str().unwrap().starts_with("This is a simulation:"));
}

#[tokio::test]
async fn a_chat_stream_has_role_tokens_finish_and_done_and_the_same_text_as_the_whole_answer() {
    let sim = instant().await;
    let body = whole("hi [[sim tokens=9]]");
    let chunks = chunks(&stream(&sim, CHAT, &with(body.clone(), "stream", true)).await);
    assert_eq!(chunks.len(), 1 + 9 + 1);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[10]["choices"][0]["finish_reason"], "stop");
    assert!(
        chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk.get("usage").is_none())
    );
    let (_, answer) = post_json(&sim, CHAT, &body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], content(&chunks));
    assert_eq!(answer["id"], chunks[0]["id"]);
}

#[tokio::test]
async fn usage_comes_last_without_choices_when_it_is_asked_for() {
    let sim = instant().await;
    let body = with(chat("tokens=4"), "stream_options", json!({"include_usage": true}));
    let chunks = chunks(&stream(&sim, CHAT, &body).await);
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 4);
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
}

#[tokio::test]
async fn max_tokens_and_n_are_honoured() {
    let sim = instant().await;
    for limit in ["max_tokens", "max_completion_tokens"] {
        let (_, body) = post_json(&sim, CHAT, &with(with(whole("hi"), limit, 5), "n", 3)).await;
        let texts: Vec<&str> = body["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["message"]["content"].as_str().unwrap())
            .collect();
        assert_eq!(texts, ["This is a simulation:"; 3]);
        assert_eq!(body["choices"][2]["finish_reason"], "length");
        assert_eq!(body["usage"]["completion_tokens"], 15);
    }
    let chunks = chunks(&stream(&sim, CHAT, &with(chat("tokens=30"), "n", 2)).await);
    assert_eq!(chunks.len(), 2 * (1 + 30 + 1));
    let of = |index: i32| {
        chunks.iter().filter(move |chunk| chunk["choices"][0]["index"] == index).cloned().collect()
    };
    let (zero, one): (Vec<Value>, Vec<Value>) = (of(0), of(1));
    assert_eq!(zero.len(), one.len());
    assert_ne!(content(&zero), content(&one));
}

#[tokio::test]
async fn settings_come_from_control_then_headers_then_the_marker() {
    let sim = instant().await;
    let tokens = async |headers: &[(&'static str, &'static str)], prompt: &str| {
        let request = client().post(format!("{}{CHAT}", sim.url())).json(&whole(prompt));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.unwrap().json::<Value>().await.unwrap()["usage"]["completion_tokens"].clone()
    };
    let control = format!("{}/control", sim.url());
    let report = client().post(&control).json(&json!({"tokens": 11})).send().await.unwrap();
    assert_eq!(report.json::<Value>().await.unwrap()["defaults"], json!({"tokens": "11"}));
    assert_eq!(tokens(&[], "hi").await, 11);
    assert_eq!(tokens(&[("x-sim-tokens", "12")], "hi").await, 12);
    assert_eq!(tokens(&[("x-sim-tokens", "12")], "hi [[sim tokens=13]]").await, 13);
    client().delete(&control).send().await.unwrap();
    assert_eq!(tokens(&[], "hi").await, 60);
    sim.set_defaults("tokens=2 times=1");
    assert_eq!((tokens(&[], "hi").await, tokens(&[], "hi").await), (json!(2), json!(60)));
}

#[tokio::test]
async fn control_reports_the_counters_and_refuses_what_it_does_not_know() {
    let sim = instant().await;
    post(&sim, CHAT, &whole("what was asked")).await;
    let control = format!("{}/control", sim.url());
    let report: Value = client().get(&control).send().await.unwrap().json().await.unwrap();
    assert_eq!(report["stats"]["requests_total"], 1);
    assert_eq!(report["stats"]["completed"], 1);
    assert!(report["stats"]["last_request"]["body"].as_str().unwrap().contains("what was asked"));
    assert!(report["faults"].as_array().unwrap().contains(&json!("stall:3")));
    for bad in [json!({"fault": "nonsense"}), json!({"speed": 1}), json!({"tokens": -1}), json!([])] {
        assert_eq!(client().post(&control).json(&bad).send().await.unwrap().status(), 400, "{bad}");
    }
    assert_eq!(client().put(&control).send().await.unwrap().status(), 405);
}

#[tokio::test]
async fn prompts_in_cjk_are_answered_in_kind_and_padding_keeps_the_text() {
    let sim = instant().await;
    let plain = chunks(&stream(&sim, CHAT, &with(whole("你好 🚂"), "stream", true)).await);
    assert!(content(&plain).chars().any(|c| ('\u{4e00}'..'\u{a000}').contains(&c)));
    let padded = client()
        .post(format!("{}{CHAT}", sim.url()))
        .header("x-sim-chunk-bytes", "1000")
        .json(&with(whole("你好 🚂"), "stream", true))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let sizes: Vec<usize> = padded.split_inclusive("\n\n").map(str::len).collect();
    assert!(sizes[..sizes.len() - 1].iter().all(|size| *size == 1000), "{sizes:?}");
    assert_eq!(content(&chunks(&padded)), content(&plain));
}

#[tokio::test]
async fn a_response_stream_has_its_own_numbered_events_and_ends_with_usage() {
    let sim = instant().await;
    let body = json!({"model": "sim-large", "stream": true, "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]});
    let events = events(&stream(&sim, RESPONSES, &body).await);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[0], "response.created");
    assert_eq!(names.iter().filter(|name| **name == "response.output_text.delta").count(), 60);
    assert_eq!(*names.last().unwrap(), "response.completed");
    let data: Vec<Value> = events.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    for (number, (event, name)) in data.iter().zip(&names).enumerate() {
        assert_eq!((&event["sequence_number"], &event["type"]), (&json!(number), &json!(name)));
    }
    let text: String = data.iter().filter_map(|event| event["delta"].as_str()).collect();
    let response = &data.last().unwrap()["response"];
    assert_eq!(response["output"][0]["content"][0]["text"], text);
    assert_eq!(response["usage"]["output_tokens"], 60);
    let (status, whole) = post_json(&sim, RESPONSES, &with(body, "stream", false)).await;
    assert_eq!((status, &whole), (200, response));
}

#[tokio::test]
async fn a_response_that_was_cut_is_incomplete() {
    let sim = instant().await;
    let body = json!({"input": "hi", "max_output_tokens": 3, "stream": true});
    let events = events(&stream(&sim, RESPONSES, &body).await);
    let (name, data) = events.last().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(name, "response.incomplete");
    assert_eq!(data["response"]["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(data["response"]["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn the_stream_of_its_own_has_named_events_with_ids() {
    let sim = instant().await;
    let text = stream(&sim, "/v1/ai/stream", &json!({"prompt": "hi [[sim tokens=2]]"})).await;
    assert!(text.starts_with(
        "id: 1\nevent: token\ndata: {\"text\":\"This\"}\n\nid: 2\nevent: token\ndata: {\"text\":\" is\"}\n\nid: 3\nevent: done\n"
    ));
}

#[tokio::test]
async fn embeddings_are_stable_unit_vectors_in_both_encodings() {
    let sim = instant().await;
    let body = json!({"model": "sim-embedding", "input": ["one", "two", "one"], "dimensions": 64});
    let (status, floats) = post_json(&sim, EMBEDDINGS, &body).await;
    assert_eq!((status, floats["data"].as_array().unwrap().len()), (200, 3));
    let vector = |index: usize| -> Vec<f32> {
        serde_json::from_value(floats["data"][index]["embedding"].clone()).unwrap()
    };
    assert_eq!(vector(0).len(), 64);
    assert_eq!(vector(0), vector(2));
    assert_ne!(vector(0), vector(1));
    assert!((vector(0).iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    let (_, encoded) = post_json(&sim, EMBEDDINGS, &with(body, "encoding_format", "base64")).await;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let decoded: Vec<f32> = bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    assert_eq!(decoded, vector(0));
    for (input, count) in [(json!("text"), 1), (json!([1, 2, 3]), 1), (json!([[1], [2]]), 2)] {
        let (_, body) = post_json(&sim, EMBEDDINGS, &json!({"input": input})).await;
        let data = body["data"].as_array().unwrap();
        assert_eq!((data.len(), data[0]["embedding"].as_array().unwrap().len()), (count, 1536));
    }
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let sim = instant().await;
    let get = async |path: &str| {
        let response = client().get(format!("{}{path}", sim.url())).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (_, list) = get("/v1/models").await;
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["sim-small", "sim-large", "sim-embedding"]);
    assert_eq!(get("/v1/models/sim-large").await.1["id"], "sim-large");
    let (status, error) = get("/v1/models/gpt-none").await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(get("/health").await, (200, json!({"status": "ok", "simulation": true})));
}

#[tokio::test]
async fn errors_are_openai_error_objects() {
    let sim = instant().await;
    let raw = async |body: &'static str| {
        let response = client().post(format!("{}{CHAT}", sim.url())).body(body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    for bad in ["", "{", "[]", "{\"messages\": 1}", "{\"messages\": [{\"content\": 5}]}"] {
        let (status, body) = raw(bad).await;
        assert_eq!((status, &body["error"]["type"]), (400, &json!("invalid_request_error")), "{bad}");
    }
    for (path, body, param) in [
        (CHAT, json!({}), "messages"),
        (CHAT, json!({"messages": []}), "messages"),
        (CHAT, with(whole("hi"), "n", 0), "n"),
        (CHAT, with(whole("hi"), "max_tokens", 0), "max_tokens"),
        (RESPONSES, json!({}), "input"),
        (EMBEDDINGS, json!({}), "input"),
        (EMBEDDINGS, json!({"input": ""}), "input"),
        (EMBEDDINGS, json!({"input": []}), "input"),
        (EMBEDDINGS, json!({"input": "hi", "dimensions": 0}), "dimensions"),
        ("/v1/ai/stream", json!({}), "prompt"),
    ] {
        let (status, error) = post_json(&sim, path, &body).await;
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{path} {body}");
    }
    for (path, body) in
        [(CHAT, whole("[[sim tokens=2000000]]")), (RESPONSES, json!({"input": "[[sim tokens=2000000]]"}))]
    {
        assert_eq!(post_json(&sim, path, &body).await.0, 400, "too long to be held in memory");
    }
    let (status, error) = post_json(&sim, CHAT, &whole("[[sim fault=nonsense]]")).await;
    assert_eq!(status, 400);
    assert!(error["error"]["message"].as_str().unwrap().contains("hang-before-headers"));
    let (status, error) = post_json(&sim, "/v1/completions", &json!({})).await;
    assert_eq!((status, &error["error"]["type"]), (404, &json!("invalid_request_error")));
    assert_eq!(post(&sim, "/", &json!({})).await.status(), 404);
    assert_eq!(client().get(format!("{}{CHAT}", sim.url())).send().await.unwrap().status(), 405);
    let stats = sim.stats();
    assert_eq!((stats.requests_open, stats.completed), (0, stats.requests_total));
}

#[tokio::test]
async fn a_configured_api_key_is_asked_for_and_recorded() {
    let sim = Sim::start(SimConfig { api_key: Some("sim-key".to_owned()), ..SimConfig::instant() }).await;
    let (status, error) = post_json(&sim, CHAT, &whole("hi")).await;
    assert_eq!((status, &error["error"]["code"]), (401, &json!("invalid_api_key")));
    let request = |key| client().post(format!("{}{CHAT}", sim.url())).bearer_auth(key).json(&whole("hi"));
    assert_eq!(request("wrong").send().await.unwrap().status(), 401);
    assert_eq!(request("sim-key").send().await.unwrap().status(), 200);
    let last = sim.stats().last_request.unwrap();
    assert_eq!((last.method.as_str(), last.uri.as_str()), ("POST", CHAT));
    assert_eq!(last.headers["authorization"], "Bearer sim-key");
    assert_eq!(serde_json::from_slice::<Value>(&last.body).unwrap(), whole("hi"));
    let health = client().get(format!("{}/health", sim.url())).send().await.unwrap();
    assert_eq!(health.status(), 200);
}
