//! What leaves the process: log lines, error reports, traces. The real binary, with a collector of ours in the place of
//! Sentry and of an OTLP collector.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use test_support::{TestDatabase, test_redis};

use crate::support::{Collector, Deployment, Process, TestApp, eventually, free_port, metric, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const CANARY: &str = "canary-5b1f-secret";

/// Case H10.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_reaches_sentry_and_the_trace_its_collector_and_no_secret_reaches_anybody() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let collector = Collector::start().await;
    let address = &collector.address;
    let port = free_port();
    let (port_text, dsn, otlp) =
        (port.to_string(), format!("http://{CANARY}@{address}/1"), format!("http://{address}"));
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("ENGINE_API_KEY", CANARY),
        ("SENTRY_DSN", dsn.as_str()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.as_str()),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug,hyper=info,h2=info"),
    ];
    let mut api = Process::start(&["api"], &vars);
    let url = format!("http://127.0.0.1:{port}");
    eventually("readiness", S(20), async || {
        reqwest::get(format!("{url}/readyz")).await.is_ok_and(|r| r.status() == 200)
    })
    .await;

    // A fault of ours: the table is gone.
    sqlx::query("alter table users rename to gone").execute(database.pool()).await.unwrap();
    let client = reqwest::Client::builder().build().unwrap();
    let body = json!({ "email": "someone@example.com", "password": CANARY });
    let answer = client
        .post(format!("{url}/v1/auth/login?token={CANARY}"))
        .header("authorization", format!("Bearer {CANARY}"))
        .header("cookie", format!("session={CANARY}"))
        .header("user-agent", "evil\tagent")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 500);
    let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap();
    assert!(!text.contains("users") && text.contains(&request_id), "{text}");

    api.signal(Signal::SIGTERM);
    let (status, took) = api.wait(S(10)).await;
    assert!(status.success() && took < S(8), "{took:?} {}", api.output());

    let sentry = collector.text("/api/1/envelope");
    assert!(sentry.contains("request failed") && sentry.contains(&request_id), "{sentry}");
    let traces = collector.text("/v1/traces");
    assert!(traces.contains("/v1/auth/login"), "the span carries its route");
    let trace_id = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    assert!(
        collector.bytes("/v1/traces").windows(16).any(|w| w == trace_id),
        "and continues the caller's trace"
    );

    let output = api.output();
    for line in output.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string());
        // Everything that was said of the request leads to its trace, and nothing else does.
        let of_request = line["request_id"] == request_id.as_str();
        assert_eq!(line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736", of_request, "{line}");
    }
    assert!(output.contains(&request_id), "{output}");
    assert!(output.contains("relation \\\"users\\\" does not exist"), "the log has the cause: {output}");
    // Sentry's own public key is part of its protocol; nothing else may carry the canary.
    let sentry =
        sentry.replace(&format!("{CANARY}@"), "").replace(&format!("\"public_key\":\"{CANARY}\""), "");
    for (place, text) in
        [("the log", &output), ("the answer", &text), ("sentry", &sentry), ("the traces", &traces)]
    {
        assert!(!text.contains(CANARY), "{place} holds a secret: {text}");
        assert!(!text.contains("someone@example.com"), "{place} holds an address");
    }
    assert!(!output.contains('\u{1b}'), "the log holds a terminal escape");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentry_that_answers_nothing_delays_neither_requests_nor_the_end() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    // Accepts and never answers.
    let hole = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hole.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hole.accept().await {
            held.push(stream);
        }
    });
    let port = free_port();
    let (port_text, dsn) = (port.to_string(), format!("http://key@{address}/1"));
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("REDIS_KEY_PREFIX", redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("SENTRY_DSN", dsn.as_str()),
    ];
    let mut api = Process::start(&["api"], &vars);
    let url = format!("http://127.0.0.1:{port}");
    eventually("readiness", S(20), async || {
        reqwest::get(format!("{url}/readyz")).await.is_ok_and(|r| r.status() == 200)
    })
    .await;
    sqlx::query("alter table users rename to gone").execute(database.pool()).await.unwrap();
    let client = reqwest::Client::builder().build().unwrap();
    for _ in 0..20 {
        let started = std::time::Instant::now();
        let body = json!({ "email": "a@example.com", "password": "long enough" });
        assert_eq!(
            client.post(format!("{url}/v1/auth/login")).json(&body).send().await.unwrap().status(),
            500
        );
        assert!(started.elapsed() < S(4), "{:?}", started.elapsed());
    }
    api.signal(Signal::SIGTERM);
    let (status, took) = api.wait(S(10)).await;
    assert!(status.success() && took < S(9), "{took:?}");
    held.abort();
}

/// Case O1.
#[tokio::test(flavor = "multi_thread")]
async fn a_sentry_that_refuses_is_silent_or_gone_costs_no_request_time_and_no_memory() {
    const ERRORS: usize = 400;
    let deployment = Deployment::new().await;
    let (fine, full, broken) =
        tokio::join!(Collector::start(), Collector::answering(429), Collector::answering(500));
    // Takes connections, as the kernel does by itself, and never answers.
    let hole = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hole_address = hole.local_addr().unwrap().to_string();
    let gone = format!("127.0.0.1:{}", free_port());
    let client = reqwest::Client::builder().timeout(S(30)).build().unwrap();
    let (mut token, mut usual) = (String::new(), Duration::ZERO);
    for (what, address) in [
        ("fine", &fine.address),
        ("429", &full.address),
        ("500", &broken.address),
        ("silent", &hole_address),
        ("gone", &gone),
    ] {
        let port = free_port();
        let dsn = format!("http://key@{address}/1");
        let vars =
            [("SENTRY_DSN", dsn.as_str()), ("RATE_LIMIT_GLOBAL", "1000000/1m"), ("LOG_LEVEL", "error")];
        let mut api = deployment.start("api", port, &vars);
        ready(port).await;
        let url = format!("http://127.0.0.1:{port}");
        if token.is_empty() {
            deployment.user_at(port).await.token().clone_into(&mut token);
            // From now on every look at the user is an error of ours.
            sqlx::query("alter table users rename to gone")
                .execute(deployment.database.pool())
                .await
                .unwrap();
        }
        let mut times = Vec::new();
        let mut before = 0;
        for turn in 0..ERRORS {
            if turn == ERRORS / 4 {
                before = api.memory_kib("VmRSS").unwrap_or(0) / 1024;
            }
            let started = std::time::Instant::now();
            let answer = client.get(format!("{url}/v1/me")).bearer_auth(&token).send().await.unwrap();
            assert_eq!(answer.status(), 500);
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let (median, after) = (times[ERRORS / 2], api.memory_kib("VmRSS").unwrap_or(0) / 1024);
        api.signal(Signal::SIGTERM);
        let (status, took) = api.wait(S(12)).await;
        println!("{what}: {median:?} at the median, {before} -> {after} MiB, ended in {took:?}");
        assert!(status.success() && took < S(6), "{what}: {took:?}");
        if what == "fine" {
            usual = median;
        }
        assert!(median < usual * 3 + Duration::from_millis(5), "{what}: {median:?}, usually {usual:?}");
        assert!(after < before + 48, "{what}: {before} -> {after} MiB");
    }
    let reports = |collector: &Collector| collector.text("/envelope").matches("request failed").count();
    assert!(reports(&fine) > 1, "what is reported arrives: {}", reports(&fine));
    let refused = reports(&full);
    assert!(refused < ERRORS / 4, "told to come back in a minute, it was sent {refused} reports");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_counts_users_and_living_sessions() {
    let app = TestApp::start().await;
    let (user, left, disabled) = (app.user().await, app.user().await, app.user().await);
    app.log_in(&user.email).await;
    left.logout(&left.refresh_token).await.expect(204);
    let disable = async |c: &mut _| {
        let found = db::users::find_by_email(c, &disabled.email).await?.expect("it was made just now");
        db::users::disable(c, found.id).await
    };
    app.state.database.call::<_, db::Error>("test", disable).await.unwrap();

    let port = free_port();
    let port_text = port.to_string();
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", app.database.url()),
        ("REDIS_URL", app.redis.url.as_str()),
        ("REDIS_KEY_PREFIX", app.redis.prefix.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
    ];
    let _worker = Process::start(&["worker"], &vars);
    ready(port).await;
    let wanted = [
        ("users", r#"state="enabled""#, 2.0),
        ("users", r#"state="disabled""#, 1.0),
        ("sessions_active", "", 2.0),
        ("users_active", "", 1.0),
    ];
    eventually("the first count", S(20), async || metric(port, "users", "").await > 0.0).await;
    for (name, labels, value) in wanted {
        assert!((metric(port, name, labels).await - value).abs() < 0.5, "{name} {labels}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_for_good_reaches_sentry_once_with_its_kind_and_id() {
    let deployment = Deployment::new().await;
    let collector = Collector::start().await;
    let dsn = format!("http://key@{}/1", collector.address);
    let more = [("SENTRY_DSN", dsn.as_str()), ("WORKER_POLL_INTERVAL", "100ms")];
    let port = free_port();
    let mut worker = deployment.start("worker", port, &more);
    ready(port).await;
    let mut c = deployment.database.pool().acquire().await.unwrap();
    let echo = |fail_times| job_specs::Echo { message: "hi".into(), sleep_ms: 0, fail_times };
    let once = jobs::EnqueueOptions { max_attempts: Some(1), ..Default::default() };
    // One that gets well again, one without attempts left, one that cannot be understood.
    let retried = jobs::enqueue(&mut c, &echo(1), jobs::EnqueueOptions::default()).await.unwrap().id();
    let failed = jobs::enqueue(&mut c, &echo(5), once.clone()).await.unwrap().id();
    let unread = jobs::enqueue_raw(&mut c, "echo", json!({ "message": 1 }), once).await.unwrap().id();
    eventually("the jobs end", S(30), async || {
        let left: i64 = sqlx::query_scalar("select count(*) from job where kind = 'echo'")
            .fetch_one(deployment.database.pool())
            .await
            .unwrap();
        left == 0
    })
    .await;
    worker.signal(Signal::SIGTERM);
    assert!(worker.wait(S(10)).await.0.success(), "{}", worker.output());

    let sentry = collector.text("/api/1/envelope");
    let reports: Vec<Value> = sentry
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|item: &Value| item["event_id"].is_string() && item["message"].is_string())
        .collect();
    for (id, message) in [(failed, "job discarded: no attempts left"), (unread, "job discarded")] {
        let of_job: Vec<_> = reports.iter().filter(|r| r["message"] == message).collect();
        assert_eq!(of_job.len(), 1, "{message}: {sentry}");
        let fields = &of_job[0]["contexts"]["Rust Tracing Fields"];
        assert_eq!((&fields["kind"], &fields["job"]), (&json!("echo"), &json!(id)), "{}", of_job[0]);
    }
    assert_eq!(reports.len(), 2, "a failure that is tried again ({retried}) is none: {sentry}");
}

/// Starts an `echo` by the API, in this trace; its id.
async fn start_echo(url: &str, token: &str, traceparent: &str) -> i64 {
    let body = json!({ "kind": "echo", "args": { "message": "x" } });
    let request = reqwest::Client::new().post(format!("{url}/v1/jobs")).bearer_auth(token).json(&body);
    let answer = request.header("traceparent", traceparent).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().parse().unwrap()
}

async fn ended(deployment: &Deployment, id: i64) {
    eventually(&format!("job {id} ends"), S(60), async || {
        let mut c = deployment.database.pool().acquire().await.unwrap();
        jobs::find(&mut c, id).await.unwrap().unwrap().state.is_final()
    })
    .await;
}

/// Names and parents of the spans of this trace, as OTLP's protobuf has them: a span's fields come in the order of their numbers
/// (1 trace, 2 span, 4 parent, 5 name).
fn spans(bytes: &[u8], trace: &[u8; 16]) -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let starts = (0..bytes.len())
        .filter(|&at| bytes[at..].starts_with(&[0x0a, 16]) && bytes[at + 2..].starts_with(trace));
    starts
        .filter_map(|at| {
            let id = bytes[at + 18..].strip_prefix(&[0x12, 8])?;
            let parent = id[8..].strip_prefix(&[0x22, 8])?;
            let name = parent[8..].strip_prefix(&[0x2a])?;
            let name_of = &name[1..=usize::from(name[0])];
            Some((String::from_utf8_lossy(name_of).into_owned(), id[..8].to_vec(), parent[..8].to_vec()))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_in_the_trace_of_the_request_that_enqueued_it() {
    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    let deployment = Deployment::new().await;
    let collector = Collector::start().await;
    let otlp = format!("http://{}", collector.address);
    let port = free_port();
    let mut all = deployment.start("all", port, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &otlp)]);
    ready(port).await;
    let url = format!("http://127.0.0.1:{port}");
    let token = deployment.user_at(port).await.token().to_owned();
    let id = start_echo(&url, &token, &format!("00-{TRACE:032x}-00f067aa0ba902b7-01")).await;
    ended(&deployment, id).await;
    let stored: String = sqlx::query_scalar("select trace->>'traceparent' from job_done where id = $1")
        .bind(id)
        .fetch_one(deployment.database.pool())
        .await
        .unwrap();
    assert!(
        stored.starts_with(&format!("00-{TRACE:032x}-")) && !stored.contains("00f067aa0ba902b7"),
        "{stored}"
    );
    all.signal(Signal::SIGTERM);
    assert!(all.wait(S(10)).await.0.success(), "{}", all.output());
    let spans = spans(&collector.bytes("/v1/traces"), &TRACE.to_be_bytes());
    let job = spans
        .iter()
        .find(|(name, ..)| name == "job")
        .unwrap_or_else(|| panic!("no span of the job: {spans:?}"));
    let parent = api::auth::hex(&job.2);
    assert!(stored.contains(&parent), "its parent is what was stored, {stored}: {spans:?}");
    assert!(spans.iter().any(|(_, id, _)| *id == job.2), "which is a span of the request: {spans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_metrics_tell_what_became_of_jobs_and_workers() {
    let deployment = Deployment::new().await;
    let pool = deployment.database.pool();
    let mut c = pool.acquire().await.unwrap();
    // Of a queue that nobody serves, and of a worker that is gone.
    let nobodys = || jobs::EnqueueOptions { queue: Some("nobodys".into()), ..Default::default() };
    let echo = |sleep_ms: u64, fail_times: u16| json!({ "message": "x", "sleep_ms": sleep_ms, "fail_times": fail_times });
    for _ in 0..3 {
        jobs::enqueue_raw(&mut c, "echo", echo(0, 0), nobodys()).await.unwrap();
    }
    sqlx::query(
        "insert into job (queue, kind, args, max_attempts, timeout_ms, state, worker, attempt, fence, run_at)
         values ('default', 'echo', '{\"message\": \"x\"}', 3, 1000, 'running', gen_random_uuid(), 1, 1, now())",
    )
    .execute(pool)
    .await
    .unwrap();
    // A line that was there before, so that a tick has been missed by now.
    sqlx::query(
        "insert into cron_line (name, schedule, timezone, catch_up, kind, registered_at)
         values ('keep_partitions', '', 'UTC', 'one', '', now() - interval '25 hours')",
    )
    .execute(pool)
    .await
    .unwrap();
    let port = free_port();
    let vars = [("WORKER_LEASE", "12s"), ("WORKER_POLL_INTERVAL", "100ms")];
    let _all = deployment.start("all", port, &vars);
    ready(port).await;
    let url = format!("http://127.0.0.1:{port}");
    let at_least = async |name: &str, labels: &str, value: f64| {
        eventually(&format!("{name}{{{labels}}} is {value}"), S(60), async || {
            metric(port, name, labels).await >= value
        })
        .await;
    };
    at_least("jobs_rescued_total", r#"kind="echo""#, 1.0).await;
    at_least("jobs_ready", r#"queue="nobodys""#, 3.0).await;
    at_least("jobs_oldest_ready_seconds", r#"queue="nobodys""#, 0.001).await;
    at_least("jobs_enqueued_total", r#"kind="keep_partitions""#, 1.0).await;

    let token = deployment.user_at(port).await.token().to_owned();
    let id = start_echo(&url, &token, "").await;
    ended(&deployment, id).await;
    let enqueued = metric(port, "jobs_enqueued_total", r#"kind="echo""#).await;
    assert!((enqueued - 1.0).abs() < 0.5, "what others enqueue is counted by them: {enqueued}");

    let once = || jobs::EnqueueOptions { max_attempts: Some(1), ..Default::default() };
    let any = jobs::EnqueueOptions::default;
    let retried = jobs::enqueue_raw(&mut c, "echo", echo(0, 1), any()).await.unwrap().id();
    let discarded = jobs::enqueue_raw(&mut c, "echo", echo(0, 1), once()).await.unwrap().id();
    let cancelled = jobs::enqueue_raw(&mut c, "echo", echo(30_000, 0), any()).await.unwrap().id();
    let void = jobs::enqueue_raw(&mut c, "echo", echo(1_500, 0), any()).await.unwrap().id();
    // Due a while ago, as after an outage.
    let late: i64 = sqlx::query_scalar(
        "insert into job (queue, kind, args, max_attempts, timeout_ms, run_at)
         values ('default', 'echo', '{\"message\": \"x\"}', 3, 1000, now() - interval '100 s') returning id",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    for id in [cancelled, void] {
        eventually("it runs", S(30), async || {
            jobs::find(&mut c, id).await.unwrap().unwrap().state == jobs::JobState::Running
        })
        .await;
    }
    jobs::cancel(&mut c, cancelled).await.unwrap();
    // As if somebody else had it by now: its outcome here is void.
    sqlx::query("update job set fence = fence + 1 where id = $1").bind(void).execute(pool).await.unwrap();
    at_least("jobs_lease_lost_total", "", 1.0).await;
    for id in [retried, discarded, cancelled, void, late] {
        ended(&deployment, id).await;
    }
    for (outcome, attempts) in [("completed", 6.0), ("retried", 1.0), ("discarded", 1.0), ("cancelled", 1.0)]
    {
        at_least("job_attempts_total", &format!(r#"kind="echo",outcome="{outcome}""#), attempts).await;
    }
    at_least("job_duration_seconds_count", r#"kind="echo""#, 9.0).await;
    at_least("job_duration_seconds_sum", r#"kind="echo""#, 3.0).await;
    at_least("job_wait_seconds_count", r#"queue="default""#, 9.0).await;
    at_least("job_wait_seconds_sum", r#"queue="default""#, 100.0).await;
    let waited = metric(port, "job_wait_seconds_sum", r#"queue="default""#).await;
    assert!(waited < 300.0, "from when each was due: {waited}");

    let text = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
    for name in ["worker_last_claim_age_seconds", "worker_last_tick_age_seconds"] {
        assert!(text.contains(&format!("\n{name}{{")), "{text}");
        let age = metric(port, name, "").await;
        assert!((0.0..90.0).contains(&age), "{name}: {age}");
    }

    sqlx::query("update worker set lease_until = now() - interval '1 s'").execute(pool).await.unwrap();
    at_least("worker_lease_lost_total", "", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_query_is_logged_with_its_statement_and_time_and_without_its_values() {
    let deployment = Deployment::new().await;
    let port = free_port();
    let api = deployment.start("api", port, &[("DATABASE_SLOW_QUERY", "300ms")]);
    ready(port).await;
    let mut holder = deployment.database.pool().begin().await.unwrap();
    sqlx::query("lock table users in access exclusive mode").execute(&mut *holder).await.unwrap();
    let login = tokio::spawn(async move {
        let body = json!({ "email": "canary@example.com", "password": CANARY });
        reqwest::Client::new()
            .post(format!("http://127.0.0.1:{port}/v1/auth/login"))
            .json(&body)
            .send()
            .await
            .unwrap()
            .status()
    });
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    eventually("the login waits for the table", S(20), async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(deployment.database.pool()).await.unwrap() > 0
    })
    .await;
    // Above a second, so that the request is slow, too.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    holder.rollback().await.unwrap();
    assert_eq!(login.await.unwrap(), 401);
    let quick = reqwest::get(format!("http://127.0.0.1:{port}/v1/me")).await.unwrap();
    assert_eq!(quick.status(), 401);
    let mut slow = Vec::new();
    eventually("the log line", S(10), async || {
        let output = api.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        slow = lines
            .filter(|line| line["message"].as_str().is_some_and(|m| m.contains("slow statement")))
            .collect();
        !slow.is_empty() && output.contains(r#""route":"/v1/me""#)
    })
    .await;
    let line = slow[0].to_string();
    assert_eq!(slow[0]["level"], "warn", "{line}");
    assert!(line.contains("from users where email = $1") && line.contains("elapsed"), "{line}");
    assert!(!api.output().contains("canary@example.com"), "values are not logged");

    // The request that waited is a warning; one that did not is none.
    let output = api.output();
    let requests: Vec<Value> = output
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "request")
        .collect();
    let of = |route: &str| {
        requests.iter().find(|line| line["route"] == route).unwrap_or_else(|| panic!("{output}"))
    };
    let slow = of("/v1/auth/login");
    assert!(slow["level"] == "warn" && slow["duration_ms"].as_f64().unwrap() > 1_000.0, "{slow}");
    let quick = of("/v1/me");
    let as_fast = quick["duration_ms"].as_f64().unwrap() < 1_000.0;
    assert!(quick["level"] == "info" || !as_fast, "{quick}");
}
