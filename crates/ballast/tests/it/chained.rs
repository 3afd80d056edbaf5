//! One Ballast as the engine of another: how a team shares one (docs/team.md).

use serde_json::json;

use crate::support::{Deployment, free_port, ready};

/// Logs somebody new in, who makes a key for AI.
async fn key(deployment: &Deployment, port: u16) -> String {
    let wanted = json!({ "name": "engine", "scopes": ["ai"] });
    let made = deployment.user_at(port).await.post("/v1/api-keys", wanted).await.expect(201).json();
    made["key"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ballast_is_the_engine_of_another() {
    let (shared, own) = tokio::join!(Deployment::new(), Deployment::new());
    let (shared_port, port) = (free_port(), free_port());
    let _shared = shared.start("api", shared_port, &[]);
    ready(shared_port).await;
    let engine_key = key(&shared, shared_port).await;
    let engine = format!("http://127.0.0.1:{shared_port}/v1");
    let _own = own.start("api", port, &[("ENGINE_URL", &engine), ("ENGINE_API_KEY", &engine_key)]);
    ready(port).await;
    let mine = key(&own, port).await;
    let client = reqwest::Client::new();
    let chat = async |model: &str, stream: bool| {
        let body =
            json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": "hello" }] });
        let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
        let answer = client.post(url).header("x-api-key", &mine).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, whole) = chat("sim-small", false).await;
    assert!(status == 200 && whole.contains("chat.completion"), "{status} {whole}");
    let (status, stream) = chat("sim-small", true).await;
    assert!(status == 200 && stream.contains("data: [DONE]"), "{status} {stream}");
    // Both have counted it, each for its own user.
    for (at, key) in [(port, &mine), (shared_port, &engine_key)] {
        let used = client.get(format!("http://127.0.0.1:{at}/v1/usage")).header("x-api-key", key);
        let used = used.send().await.unwrap().text().await.unwrap();
        assert!(used.contains("sim-small"), "{used}");
    }
}
