//! Jobs, through the API.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;

use crate::support::TestApp;

#[tokio::test]
async fn a_job_is_accepted_run_and_shown_to_its_owner_only() {
    let app = TestApp::start().await;
    let (user, stranger) = (app.user().await, app.user().await);
    let accepted =
        user.post("/v1/jobs", json!({ "kind": "echo", "args": { "message": "hello" } })).await.expect(202);
    let path = accepted.header("location").to_owned();
    assert_eq!(user.get(&path).await.expect(200).json()["state"], "ready");
    assert!(app.run_pending_jobs().await >= 1);
    let job = user.get(&path).await.expect(200).json();
    assert_eq!(
        (job["state"].as_str(), job["result"]["message"].as_str()),
        (Some("completed"), Some("hello"))
    );
    stranger.get(&path).await.problem(404, "not_found");
    stranger.get(&format!("{path}/events")).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_and_its_errors_are_kept() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = json!({ "kind": "echo", "args": { "message": "x", "fail_times": 1 } });
    let path = user.post("/v1/jobs", body).await.expect(202).header("location").to_owned();
    app.run_pending_jobs().await;
    let job = user.get(&path).await.expect(200).json();
    assert!(job["state"] == "ready" || job["state"] == "completed", "{job}");
    assert_eq!(job["errors"].as_array().unwrap().len(), 1, "{job}");
}

#[tokio::test]
async fn what_users_may_not_start_is_refused_with_the_list_of_what_they_may() {
    let app = TestApp::start().await;
    let user = app.user().await;
    for body in [
        json!({ "kind": "send_email", "args": { "to": "a@b.c", "subject": "x", "text": "x" } }),
        json!({ "kind": "nonsense" }),
    ] {
        let refused = user.post("/v1/jobs", body).await.problem(422, "invalid").json();
        assert!(refused["detail"].as_str().unwrap().contains("echo"), "{refused}");
    }
    for args in [
        json!({}),
        json!({ "message": 1 }),
        json!({ "message": "x", "sleep_ms": -1 }),
        json!({ "message": "x", "more": 1 }),
    ] {
        user.post("/v1/jobs", json!({ "kind": "echo", "args": args })).await.problem(422, "invalid");
    }
    let deep = format!(r#"{{"kind":"echo","args":{}"#, "[".repeat(10_000));
    let request =
        user.request(reqwest::Method::POST, "/v1/jobs").header("content-type", "application/json").body(deep);
    user.send(request).await.problem(400, "malformed_json");
    let large = json!({ "kind": "echo", "args": { "message": "x".repeat(300 * 1024) } });
    user.post("/v1/jobs", large).await.problem(413, "body_too_large");
    for id in ["0", "-1", "99999999999999999999999", "abc", "1e3"] {
        user.get(&format!("/v1/jobs/{id}")).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn a_jobs_events_tell_its_changes_and_end_with_it() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let body = json!({ "kind": "echo", "args": { "message": "x" } });
    let path = user.post("/v1/jobs", body).await.expect(202).header("location").to_owned();
    let response = user.request(reqwest::Method::GET, &format!("{path}/events")).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut stream = response.bytes_stream();
    let mut text = String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(text.contains("\"state\":\"ready\""), "{text}");
    app.run_pending_jobs().await;
    let rest = async {
        while let Some(chunk) = stream.next().await {
            text.push_str(&String::from_utf8_lossy(&chunk.unwrap()));
        }
    };
    tokio::time::timeout(Duration::from_secs(5), rest).await.expect("the stream ends with the job");
    assert!(text.contains("\"state\":\"completed\""), "{text}");
}

#[tokio::test]
async fn only_administrators_see_queues_and_cron_lines_and_never_by_key() {
    let app = TestApp::start().await;
    let (admin, user) = (app.admin().await, app.user().await);
    let key = app.api_key(&admin, &["jobs"]).await;
    for path in ["/v1/admin/queues", "/v1/admin/cron"] {
        user.get(path).await.problem(403, "admin_required");
        key.get(path).await.problem(403, "session_required");
        app.anonymous().get(path).await.problem(401, "missing_credentials");
        assert!(admin.get(path).await.expect(200).json()["data"].is_array());
    }
    user.post("/v1/jobs", json!({ "kind": "echo", "args": { "message": "x" } })).await.expect(202);
    let queues = admin.get("/v1/admin/queues").await.expect(200).json();
    assert_eq!(queues["data"][0]["ready"], 1, "{queues}");
}
