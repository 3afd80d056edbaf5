//! What operators see of the queue and do to it, through the API and with the binary.

use std::time::Duration;

use jobs::{EnqueueOptions, JobState};
use serde_json::{Value, json};

use crate::{
    cli::run,
    support::{Persona, TestApp, eventually},
};

const S: fn(u64) -> Duration = Duration::from_secs;

async fn enqueue(app: &TestApp, kind: &str, args: Value, options: EnqueueOptions) -> i64 {
    let mut c = app.database.pool().acquire().await.unwrap();
    jobs::enqueue_raw(&mut c, kind, args, options).await.unwrap().id()
}

async fn echo(app: &TestApp, args: Value) -> i64 {
    enqueue(app, "echo", args, EnqueueOptions::default()).await
}

async fn state(app: &TestApp, id: i64) -> JobState {
    jobs::find(&mut app.database.pool().acquire().await.unwrap(), id).await.unwrap().unwrap().state
}

/// A job whose one attempt fails.
async fn discarded(app: &TestApp) -> i64 {
    let options = EnqueueOptions { max_attempts: Some(1), ..Default::default() };
    let id = enqueue(app, "echo", json!({"message": "x", "fail_times": 1}), options).await;
    app.run_pending_jobs().await;
    assert_eq!(state(app, id).await, JobState::Discarded);
    id
}

async fn ids(admin: &Persona, query: &str) -> Vec<String> {
    let page = admin.get(&format!("/v1/admin/jobs?{query}")).await.expect(200).json();
    page["data"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

async fn audited(app: &TestApp) -> Vec<String> {
    sqlx::query_scalar(
        "select event from audit_log where event like 'job%' or event like 'queue%' order by id",
    )
    .fetch_all(app.database.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn only_administrators_reach_the_admin_routes_and_never_by_key() {
    let app = TestApp::start().await;
    let (admin, user) = (app.admin().await, app.user().await);
    let key = app.api_key(&admin, &["jobs"]).await;
    let id = echo(&app, json!({"message": "x"})).await;
    for path in ["/v1/admin/queues", "/v1/admin/cron", "/v1/admin/jobs", &format!("/v1/admin/jobs/{id}")] {
        user.get(path).await.problem(403, "admin_required");
        key.get(path).await.problem(403, "session_required");
        app.anonymous().get(path).await.problem(401, "missing_credentials");
        admin.get(path).await.expect(200);
    }
    for path in [
        "queues/default/pause",
        "queues/default/resume",
        &format!("jobs/{id}/retry"),
        &format!("jobs/{id}/cancel"),
    ] {
        user.post(&format!("/v1/admin/{path}"), json!({})).await.problem(403, "admin_required");
        key.post(&format!("/v1/admin/{path}"), json!({})).await.problem(403, "session_required");
    }
    user.post("/v1/admin/jobs", json!({"kind": "cleanup"})).await.problem(403, "admin_required");
    assert_eq!(state(&app, id).await, JobState::Ready);
}

#[tokio::test]
async fn jobs_are_listed_by_state_kind_and_queue_page_by_page() {
    let app = TestApp::start().await;
    let admin = app.admin().await;
    let bad = discarded(&app).await;
    let elsewhere = EnqueueOptions { queue: Some("slow".into()), ..Default::default() };
    let slow = enqueue(&app, "heartbeat", json!({}), elsewhere).await;
    let mut ready = Vec::new();
    for n in 0..5 {
        ready.push(echo(&app, json!({"message": n.to_string()})).await.to_string());
    }
    assert_eq!(ids(&admin, "state=discarded").await, [bad.to_string()]);
    assert_eq!(ids(&admin, "queue=slow").await, [slow.to_string()]);
    assert_eq!(ids(&admin, "kind=heartbeat&state=ready").await, [slow.to_string()]);
    let (mut seen, mut query) = (Vec::new(), "kind=echo&state=ready&limit=2".to_owned());
    loop {
        let page = admin.get(&format!("/v1/admin/jobs?{query}")).await.expect(200).json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|j| j["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        query = format!("kind=echo&state=ready&limit=2&before={next}");
    }
    ready.reverse();
    assert_eq!(seen, ready, "newest first, each once");
    for wrong in ["limit=0", "limit=201", "kind=a%00b", "queue=%00"] {
        admin.get(&format!("/v1/admin/jobs?{wrong}")).await.problem(422, "invalid");
    }
    for wrong in ["state=lost", "before=x", "limit=-1", "colour=red"] {
        admin.get(&format!("/v1/admin/jobs?{wrong}")).await.problem(400, "invalid_query");
    }
}

#[tokio::test]
async fn what_is_private_in_a_payload_is_not_shown_to_operators() {
    let app = TestApp::start().await;
    let admin = app.admin().await;
    let mail = json!({"to": "canary@example.com", "subject": "Reset", "text": "https://x/canary"});
    let id = enqueue(&app, "send_email", mail, EnqueueOptions::default()).await;
    let job = admin.get(&format!("/v1/admin/jobs/{id}")).await.expect(200);
    assert_eq!(job.json()["args"]["subject"], "Reset");
    let list = admin.get("/v1/admin/jobs").await.expect(200);
    let vars = [("DATABASE_URL", app.database.url())];
    let (_, shown, _) = run(&["jobs", "show", &id.to_string()], &vars);
    for text in [job.text, list.text, shown] {
        assert!(text.contains("send_email") && !text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn a_discarded_job_is_run_again_and_a_waiting_one_cancelled() {
    let app = TestApp::start().await;
    let admin = app.admin().await;
    let bad = discarded(&app).await;
    let job = admin.post(&format!("/v1/admin/jobs/{bad}/retry"), json!({})).await.expect(200).json();
    assert_eq!((job["state"].as_str(), job["errors"].as_array().unwrap().len()), (Some("ready"), 1), "{job}");
    let job = admin.post(&format!("/v1/admin/jobs/{bad}/cancel"), json!({})).await.expect(200).json();
    assert_eq!(job["state"], "cancelled");
    admin.post(&format!("/v1/admin/jobs/{bad}/cancel"), json!({})).await.problem(409, "not_cancellable");
    let done = echo(&app, json!({"message": "x"})).await;
    app.run_pending_jobs().await;
    let refused = admin.post(&format!("/v1/admin/jobs/{done}/retry"), json!({})).await;
    assert!(refused.problem(409, "not_retryable").text.contains("completed"));
    for path in ["/v1/admin/jobs/999999", "/v1/admin/jobs/nonsense"] {
        admin.get(path).await.problem(404, "not_found");
        admin.post(&format!("{path}/retry"), json!({})).await.problem(404, "not_found");
        admin.post(&format!("{path}/cancel"), json!({})).await.problem(404, "not_found");
    }
    assert_eq!(audited(&app).await, ["job_retried", "job_cancelled"], "refusals change nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_cancelled_through_the_api_and_its_worker_stops_it() {
    let app = TestApp::start().await;
    let admin = app.admin().await;
    let id = echo(&app, json!({"message": "x", "sleep_ms": 60_000})).await;
    app.start_worker().await;
    eventually("it runs", S(10), async || state(&app, id).await == JobState::Running).await;
    let job = admin.post(&format!("/v1/admin/jobs/{id}/cancel"), json!({})).await.expect(200).json();
    assert!(job["cancel_requested"] == true || job["state"] == "cancelled", "{job}");
    eventually("it is cancelled", S(10), async || state(&app, id).await == JobState::Cancelled).await;
}

/// Case H5.
#[tokio::test]
async fn operators_enqueue_any_kind_and_are_told_what_is_wrong() {
    let app = TestApp::start().await;
    let admin = app.admin().await;
    let job = admin.post("/v1/admin/jobs", json!({"kind": "cleanup"})).await.expect(202).json();
    assert_eq!((job["state"].as_str(), job["priority"].as_str()), (Some("ready"), Some("low")), "{job}");
    let body = json!({"kind": "echo", "args": {"message": "x"}, "queue": "slow", "priority": "urgent",
                      "max_attempts": 2, "delay_seconds": 3600});
    let job = admin.post("/v1/admin/jobs", body).await.expect(202).json();
    assert_eq!((job["queue"].as_str(), job["max_attempts"].as_i64()), (Some("slow"), Some(2)), "{job}");
    let (created, due) = (job["created_at"].as_str().unwrap(), job["run_at"].as_str().unwrap());
    let time = |text: &str| chrono::DateTime::parse_from_rfc3339(text).unwrap();
    assert!((time(due) - time(created)).num_minutes() >= 59, "{job}");
    for (body, what) in [
        (json!({"kind": "nonsense"}), "keep_partitions"),
        (json!({"kind": "echo"}), "message"),
        (json!({"kind": "echo", "args": {"message": "a\u{0}"}}), "NUL"),
        (json!({"kind": "cleanup", "queue": "a b"}), "not a name"),
        (json!({"kind": "cleanup", "max_attempts": 0}), "at least 1"),
        (json!({"kind": "cleanup", "priority": "now"}), "unknown variant"),
        (json!({"kind": "cleanup", "more": 1}), "unknown field"),
    ] {
        let refused = admin.post("/v1/admin/jobs", body).await.problem(422, "invalid");
        assert!(refused.text.contains(what), "{what}: {}", refused.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_paused_and_resumed_and_a_misspelt_one_is_told() {
    let app = TestApp::start().await;
    let admin = app.admin().await;
    let id = echo(&app, json!({"message": "x"})).await;
    let queue = admin.post("/v1/admin/queues/default/pause", json!({})).await.expect(200).json();
    assert!(queue["paused_at"].is_string() && queue["ready"] == 1, "{queue}");
    app.run_pending_jobs().await;
    assert_eq!(state(&app, id).await, JobState::Ready, "nothing of it is begun");
    let listed = admin.get("/v1/admin/queues").await.expect(200).json();
    assert_eq!(listed["data"][0]["paused_at"], queue["paused_at"], "{listed}");
    let refused = admin.post("/v1/admin/queues/defualt/pause", json!({})).await.problem(404, "not_found");
    assert!(refused.json()["detail"].as_str().unwrap().contains("default"), "{}", refused.text);
    let queue = admin.post("/v1/admin/queues/default/resume", json!({})).await.expect(200).json();
    assert!(queue["paused_at"].is_null(), "{queue}");
    app.run_pending_jobs().await;
    assert_eq!(state(&app, id).await, JobState::Completed);
    assert_eq!(audited(&app).await, ["queue_paused", "queue_resumed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cron_lines_show_their_last_and_next_tick() {
    let app = TestApp::start().await;
    let admin = app.admin().await;
    // A line that was there before, so that a tick has been missed by now; it is made good for once.
    sqlx::query(
        "insert into cron_line (name, schedule, timezone, catch_up, kind, registered_at)
         values ('keep_partitions', '', 'UTC', 'one', '', now() - interval '25 hours')",
    )
    .execute(app.database.pool())
    .await
    .unwrap();
    app.start_worker().await;
    let mut lines = json!([]);
    let find = |lines: &Value, name: &str| {
        lines.as_array().unwrap().iter().find(|line| line["name"] == name).cloned().unwrap_or_default()
    };
    eventually("the worker registers its lines and looks at them", S(10), async || {
        lines = admin.get("/v1/admin/cron").await.expect(200).json()["data"].clone();
        find(&lines, "heartbeat").is_object() && find(&lines, "keep_partitions")["last_tick"].is_string()
    })
    .await;
    let line = find(&lines, "heartbeat");
    assert_eq!((line["schedule"].as_str(), line["kind"].as_str()), (Some("* * * * *"), Some("heartbeat")));
    assert!(line["next_tick"].is_string(), "{line}");
    let line = find(&lines, "keep_partitions");
    let time = |name: &str| line[name].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let (last, next) = (time("last_tick"), time("next_tick"));
    assert_eq!((last.format("%T").to_string(), next - last), ("00:10:00".into(), chrono::TimeDelta::days(1)));
    let last_job = line["last_job"].as_str().unwrap();
    let job = admin.get(&format!("/v1/admin/jobs/{last_job}")).await.expect(200).json();
    assert_eq!(job["kind"], "keep_partitions", "the tick's job: {job}");
    let (code, table, _) = run(&["jobs", "cron"], &[("DATABASE_URL", app.database.url())]);
    let shown = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(code == 0 && table.contains("LAST TICK") && table.contains("NEXT TICK"), "{table}");
    assert!(shown("heartbeat").contains("* * * * *"), "{table}");
    for cell in [last_job, &last.format("%F").to_string(), &next.format("%F").to_string()] {
        assert!(shown("keep_partitions").contains(cell), "{cell}: {table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_what_the_admin_api_does() {
    let app = TestApp::start().await;
    let bad = discarded(&app).await.to_string();
    let vars = [("DATABASE_URL", app.database.url())];
    let jobs = |arguments: &[&str]| run(&[&["jobs"], arguments].concat(), &vars);
    let json = |arguments: &[&str]| -> Value {
        let (code, stdout, stderr) = jobs(&[arguments, &["--json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let (code, table, _) = jobs(&["list", "--state", "discarded"]);
    assert_eq!(code, 0);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("ID") && lines[1].starts_with(&bad) && lines[1].contains("1/1"), "{table}");
    let admin = app.admin().await;
    let shown = admin.get(&format!("/v1/admin/jobs/{bad}")).await.expect(200).json();
    assert_eq!(json(&["show", &bad]), shown, "the same words as the API's");
    let (_, sheet, _) = jobs(&["show", &bad]);
    assert!(sheet.contains("failing on request"), "{sheet}");

    let id =
        json(&["enqueue", "echo", r#"{"message":"hi"}"#, "--delay", "10m", "--queue", "slow"])["id"].clone();
    let id = id.as_str().unwrap();
    let (code, stdout, _) = jobs(&["cancel", id]);
    assert_eq!((code, stdout.trim()), (0, format!("{id} echo cancelled").as_str()));
    let (code, _, stderr) = jobs(&["cancel", id]);
    assert_eq!((code, stderr.contains("nothing to cancel")), (1, true), "{stderr}");
    let (code, stdout, stderr) = jobs(&["retry", &bad, "999999", id]);
    assert_eq!(code, 1, "one of three was not there");
    assert_eq!(stdout.lines().count(), 2, "the others were retried: {stdout}");
    assert!(stderr.contains("job 999999"), "{stderr}");

    assert!(json(&["pause", "default"])["paused_at"].is_string());
    let (_, table, _) = jobs(&["queues"]);
    assert!(table.contains("PAUSED SINCE") && table.contains("default"), "{table}");
    assert!(json(&["resume", "default"])["paused_at"].is_null());
    let (code, _, stderr) = jobs(&["pause", "nonsense"]);
    assert_eq!((code, stderr.contains("There is no such queue")), (1, true), "{stderr}");

    for wrong in [
        &["list", "--state", "lost"][..],
        &["list", "--limit", "0"],
        &["enqueue", "echo", "{"],
        &["enqueue", "echo", "--delay", "soon"],
        &["retry"],
        &["show", "x"],
    ] {
        assert_eq!(jobs(wrong).0, 2, "{wrong:?}");
    }
    let (code, _, stderr) = jobs(&["enqueue", "nonsense"]);
    assert_eq!((code, stderr.contains("there are: ")), (1, true), "{stderr}");
    let (code, _, stderr) = run(
        &["jobs", "list"],
        &[("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"), ("DATABASE_ACQUIRE_TIMEOUT", "200ms")],
    );
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("not available") && !stderr.contains(":p@"), "{stderr}");
    assert_eq!(run(&["jobs", "list"], &[]).0, 78);
    let events =
        ["job_enqueued", "job_cancelled", "job_retried", "job_retried", "queue_paused", "queue_resumed"];
    assert_eq!(audited(&app).await, events);
}
