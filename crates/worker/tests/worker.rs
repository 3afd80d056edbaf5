//! Each job that ships, and the worker as a whole, against a real Postgres.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::HashSet, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use config::{Environment, MapVars, ShutdownConfig, WorkerConfig};
use db::{
    Database,
    one_time_tokens::{self, OneTimeToken, Purpose},
    usage::UsageEvent,
};
use job_specs::{AccountMail, Asked, Cleanup, Echo, Heartbeat, KeepPartitions, SendEmail, UsageRollup};
use jobs::{
    EnqueueOptions, JobSpec, JobState, JobView,
    testing::{drain_until_empty, fast_forward},
};
use runtime::Lifecycle;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use test_support::TestDatabase;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Mutex,
};
use uuid::Uuid;
use worker::{Context, Mailer};

struct Bench {
    database: TestDatabase,
    context: Context,
    conn: PgConnection,
}

impl Bench {
    async fn new() -> Self {
        runtime::install_crypto_provider();
        let database = TestDatabase::create().await;
        let vars = MapVars::from([
            ("DATABASE_URL", database.url()),
            ("REDIS_URL", "redis://localhost"),
            ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ]);
        let config = WorkerConfig::from_vars(&vars).unwrap();
        let db = Database::from_pool(database.pool().clone());
        let context = Context::new(db, config, http());
        let conn = PgConnection::connect(database.url()).await.unwrap();
        Self { database, context, conn }
    }

    async fn enqueue<J: JobSpec>(&mut self, job: J) -> i64 {
        jobs::enqueue(&mut self.conn, &job, EnqueueOptions::default()).await.unwrap().id()
    }

    async fn find(&mut self, id: i64) -> JobView {
        jobs::find(&mut self.conn, id).await.unwrap().expect("the job is there")
    }

    /// Enqueues the job, runs what is due, and shows what became of it.
    async fn run<J: JobSpec>(&mut self, job: J) -> JobView {
        let id = self.enqueue(job).await;
        drain_until_empty(&worker::worker(&self.context)).await;
        self.find(id).await
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

#[tokio::test]
async fn echo_says_its_message_back_after_failing_as_often_as_it_was_told_to() {
    let mut bench = Bench::new().await;
    let job = bench.run(Echo { message: "hello".into(), sleep_ms: 0, fail_times: 2 }).await;
    assert_eq!((job.state, job.attempt), (JobState::Ready, 1));
    assert_eq!(job.errors[0].error, "failing on request (1 of 2)");
    for _ in 0..2 {
        fast_forward(&mut bench.conn, Duration::from_secs(60)).await;
        drain_until_empty(&worker::worker(&bench.context)).await;
    }
    let job = bench.find(job.id).await;
    assert_eq!(job.state, JobState::Completed);
    assert_eq!(job.result, Some(json!({"message": "hello", "attempt": 3})));
}

#[tokio::test]
async fn echo_shows_its_progress_while_it_sleeps() {
    let mut bench = Bench::new().await;
    let job = bench.run(Echo { message: "slow".into(), sleep_ms: 300, fail_times: 0 }).await;
    assert_eq!(job.state, JobState::Completed);
    let progress = job.progress.unwrap();
    assert_eq!((progress.done, progress.total), (300, 300));
}

fn event(user_id: Uuid, outcome: &'static str, prompt_tokens: i64) -> UsageEvent {
    UsageEvent {
        id: Uuid::now_v7(),
        occurred_at: "2026-01-31T10:20:30Z".parse().unwrap(),
        user_id,
        api_key_id: None,
        request_id: "r".into(),
        route: "/v1/chat/completions".into(),
        model: "m".into(),
        engine: "e".into(),
        prompt_tokens,
        completion_tokens: 2,
        estimated: false,
        cached: false,
        outcome,
        first_token_ms: None,
        duration_ms: 1,
    }
}

#[tokio::test]
async fn the_roll_up_counts_every_event_once_however_often_it_runs() {
    let mut bench = Bench::new().await;
    let user = Uuid::new_v4();
    db::usage::insert(&mut bench.conn, &[event(user, "ok", 10), event(user, "engine_error", 5)])
        .await
        .unwrap();
    let job = bench.run(UsageRollup {}).await;
    assert_eq!((job.state, job.result), (JobState::Completed, Some(json!({"events": 2}))));
    let again = bench.run(UsageRollup {}).await;
    assert_eq!(again.result, Some(json!({"events": 0})));
    db::usage::insert(&mut bench.conn, &[event(user, "ok", 1)]).await.unwrap();
    bench.run(UsageRollup {}).await;
    let hour: (i64, i64, i64, i64) = sqlx::query_as(
        "select requests, errors, prompt_tokens, completion_tokens from usage_hour where user_id = $1",
    )
    .bind(user)
    .fetch_one(&mut bench.conn)
    .await
    .unwrap();
    assert_eq!(hour, (3, 1, 16, 6));
}

#[tokio::test]
async fn a_roll_up_that_waits_already_is_not_enqueued_twice() {
    let mut bench = Bench::new().await;
    let first = bench.enqueue(UsageRollup {}).await;
    assert_eq!(bench.enqueue(UsageRollup {}).await, first);
}

/// As the job `usage_rollup` does it.
async fn roll_up(c: &mut PgConnection) {
    while db::usage::roll_up(c, 5_000).await.unwrap() > 0 {}
}

/// Raw rows added up by hour, user and model, as a test would do it that knows no roll-up.
const RAW: &str = "select date_trunc('hour', occurred_at, 'UTC'), user_id, model, count(*),
    count(*) filter (where outcome <> 'ok'), count(*) filter (where cached), sum(prompt_tokens)::bigint,
    sum(completion_tokens)::bigint from usage_event group by 1, 2, 3 order by 1, 2, 3";
const SUMS: &str = "select hour, user_id, model, requests, errors, cached, prompt_tokens, completion_tokens
    from usage_hour order by 1, 2, 3";
type Sums = Vec<(DateTime<Utc>, Uuid, String, i64, i64, i64, i64, i64)>;

#[tokio::test(flavor = "multi_thread")]
async fn the_sums_by_hour_are_those_of_the_raw_rows_whoever_adds_them_up_and_whenever() {
    let mut bench = Bench::new().await;
    let users = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
    let begin: DateTime<Utc> = "2026-03-28T22:00:00Z".parse().unwrap();
    // Two writers, three that add up, over a change of summer time and days.
    let write = |seed: i64| {
        let (pool, users) = (bench.database.pool().clone(), users);
        async move {
            for batch in 0..40 {
                let events: Vec<_> = (0..50_i64)
                    .map(|i| {
                        let n = (seed * 7_919 + batch * 50 + i) * 2_654_435_761 % 1_000_003;
                        let outcome = ["ok", "ok", "client_abort", "engine_error"][(n % 4) as usize];
                        UsageEvent {
                            occurred_at: begin + TimeDelta::seconds(n % 100_000),
                            model: ["m", "n", "漢"][(n % 3) as usize].into(),
                            completion_tokens: n % 77,
                            cached: n % 5 == 0,
                            ..event(users[(n % 3) as usize], outcome, n % 1_000)
                        }
                    })
                    .collect();
                let mut c = pool.acquire().await.unwrap();
                db::usage::insert(&mut c, &events).await.unwrap();
            }
        }
    };
    let add_up = || {
        let pool = bench.database.pool().clone();
        async move {
            let mut c = pool.acquire().await.unwrap();
            let mut counted = 0;
            while counted < 100 {
                db::usage::roll_up(&mut c, 97).await.unwrap();
                counted += 1;
            }
        }
    };
    tokio::join!(write(1), write(2), add_up(), add_up(), add_up());
    roll_up(&mut bench.conn).await;
    let raw: Sums = sqlx::query_as(RAW).fetch_all(&mut bench.conn).await.unwrap();
    let sums: Sums = sqlx::query_as(SUMS).fetch_all(&mut bench.conn).await.unwrap();
    assert!(raw.len() > 50, "{}", raw.len());
    assert_eq!(raw.iter().map(|row| row.3).sum::<i64>(), 4_000);
    assert_eq!(sums, raw);
}

#[tokio::test]
async fn single_requests_are_forgotten_after_90_days_and_their_sums_are_kept() {
    let mut bench = Bench::new().await;
    let user = Uuid::new_v4();
    let now = runtime::Clock::system().now();
    let ago = |days: i64| UsageEvent { occurred_at: now - TimeDelta::days(days), ..event(user, "ok", 10) };
    db::usage::insert(&mut bench.conn, &[ago(91), ago(100), ago(89)]).await.unwrap();
    let since = now - TimeDelta::days(366);
    let before = db::usage::by_day(&mut bench.conn, user, since).await.unwrap();
    let job = bench.run(Cleanup {}).await;
    assert_eq!(job.result.unwrap()["usage_events"], 0, "what is not yet counted stays");
    roll_up(&mut bench.conn).await;
    let job = bench.run(Cleanup {}).await;
    assert_eq!(job.result.unwrap()["usage_events"], 2);
    let after = db::usage::by_day(&mut bench.conn, user, since).await.unwrap();
    assert_eq!(format!("{after:?}"), format!("{before:?}"), "nobody sees it in one's usage");
    let left: i64 =
        sqlx::query_scalar("select count(*) from usage_event").fetch_one(&mut bench.conn).await.unwrap();
    assert_eq!(left, 1);
    // More than one statement takes.
    let many: Vec<_> = (0..5_100).map(|_| UsageEvent { prompt_tokens: 1, ..ago(200) }).collect();
    for batch in many.chunks(1_000) {
        db::usage::insert(&mut bench.conn, batch).await.unwrap();
    }
    roll_up(&mut bench.conn).await;
    let job = bench.run(Cleanup {}).await;
    assert_eq!(job.result.unwrap()["usage_events"], 5_100);
}

#[tokio::test]
async fn keeping_partitions_and_cleaning_up_run_and_report() {
    let mut bench = Bench::new().await;
    let job = bench.run(KeepPartitions {}).await;
    assert_eq!(job.state, JobState::Completed, "{job:?}");
    assert_eq!(job.result.unwrap()["created"].as_array().unwrap().len(), 8);
    let job = bench.run(Cleanup {}).await;
    assert_eq!(
        job.result,
        Some(
            json!({"sessions": 0, "one_time_tokens": 0, "webhooks": 0, "runs": 0, "audit_log": 0, "usage_events": 0, "queue": 0})
        ),
        "{:?}",
        job.errors
    );
    assert_eq!(bench.run(Heartbeat {}).await.state, JobState::Completed);
}

#[tokio::test]
async fn old_webhooks_are_deleted_and_those_that_wait_or_are_young_are_not() {
    let mut bench = Bench::new().await;
    let user = Uuid::new_v4();
    let setup = format!(
        "insert into users (id, email, password_hash) values ('{user}', 'a@example.com', '');
         insert into webhook_event (source, event_id, body, received_at, processed_at) values
             ('crm', 'old', '', now() - interval '31 days', now()), ('crm', 'young', '', now(), now()),
             ('crm', 'waits', '', now() - interval '31 days', null);
         insert into webhook_endpoint (id, user_id, url, key_id, sealed)
             values ('{user}', '{user}', 'https://example.com', '', repeat('x', 29)::bytea);
         insert into webhook_delivery (id, endpoint_id, event_type, body, created_at) values
             (gen_random_uuid(), '{user}', 'old', '', now() - interval '31 days'),
             (gen_random_uuid(), '{user}', 'young', '', now());"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(setup)).execute(&mut bench.conn).await.unwrap();
    let job = bench.run(Cleanup {}).await;
    assert_eq!(job.result.as_ref().unwrap()["webhooks"], 2, "{job:?}");
    let left: Vec<String> = sqlx::query_scalar(
        "select event_id from webhook_event union all select event_type from webhook_delivery order by 1",
    )
    .fetch_all(&mut bench.conn)
    .await
    .unwrap();
    assert_eq!(left, ["waits", "young", "young"]);
}

#[tokio::test]
async fn old_security_events_and_counted_usage_are_deleted_and_the_sums_stay() {
    let mut bench = Bench::new().await;
    let user = Uuid::new_v4();
    let aged = |days: i64| UsageEvent {
        occurred_at: runtime::Clock::system().now() - TimeDelta::days(days),
        ..event(user, "ok", 10)
    };
    db::usage::insert(&mut bench.conn, &[aged(91), aged(89)]).await.unwrap();
    roll_up(&mut bench.conn).await;
    db::usage::insert(&mut bench.conn, &[aged(92)]).await.unwrap();
    // More than one batch of them.
    sqlx::raw_sql(
        "insert into audit_log (event, occurred_at) select 'old', now() - interval '366 days' from generate_series(1, 6000);
         insert into audit_log (event, occurred_at) values ('young', now() - interval '364 days')",
    )
    .execute(&mut bench.conn)
    .await
    .unwrap();
    let job = bench.run(Cleanup {}).await;
    let result = job.result.unwrap();
    assert_eq!((&result["audit_log"], &result["usage_events"]), (&json!(6000), &json!(1)));
    let left: Vec<String> =
        sqlx::query_scalar("select event from audit_log").fetch_all(&mut bench.conn).await.unwrap();
    assert_eq!(left, ["young"]);
    let events: i64 =
        sqlx::query_scalar("select count(*) from usage_event").fetch_one(&mut bench.conn).await.unwrap();
    assert_eq!(events, 2, "the young one, and the old one that is not counted yet");
    roll_up(&mut bench.conn).await;
    assert_eq!(bench.run(Cleanup {}).await.result.unwrap()["usage_events"], 1);
    let requests: Option<i64> = sqlx::query_scalar("select sum(requests)::bigint from usage_hour")
        .fetch_one(&mut bench.conn)
        .await
        .unwrap();
    assert_eq!(requests, Some(3), "the sums stay");
}

fn mail() -> SendEmail {
    SendEmail { to: "a@example.com".into(), subject: "Hi".into(), text: "Hello".into(), html: None }
}

/// A mail provider that answers what it is told to, one after the other, and keeps what it was sent.
async fn provider(answers: &'static [&'static str]) -> (reqwest::Url, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/emails", listener.local_addr().unwrap()).parse().unwrap();
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = requests.clone();
    let serve = async move {
        // Connections stay open: an answer ends where its head says.
        let mut open = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                assert!(socket.read_buf(&mut request).await.unwrap() > 0);
            }
            kept.lock().await.push(String::from_utf8(request).unwrap());
            socket.write_all(answer.as_bytes()).await.unwrap();
            open.push(socket);
        }
        std::future::pending::<()>().await;
    };
    #[expect(clippy::disallowed_methods, reason = "the other side of the test ends with the test")]
    tokio::spawn(serve);
    (url, requests)
}

fn with_provider(bench: &mut Bench, url: reqwest::Url) {
    let vars = MapVars::from([
        ("DATABASE_URL", bench.database.url()),
        ("REDIS_URL", "redis://localhost"),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("RESEND_API_KEY", "re_canary"),
    ]);
    let config = WorkerConfig::from_vars(&vars).unwrap();
    bench.context.mailer = Mailer::from_config(&config.mail, Environment::Production, http()).at(url);
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{\"id\": \"m1\"}";
const BUSY: &str =
    "HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const DOWN: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const WRONG: &str =
    "HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 11\r\nconnection: close\r\n\r\nno such to!";

#[tokio::test]
async fn a_mail_goes_out_once_under_the_jobs_id_after_the_provider_was_busy_and_down() {
    let mut bench = Bench::new().await;
    let (url, requests) = provider(&[BUSY, DOWN, OK]).await;
    with_provider(&mut bench, url);
    let job = bench.run(mail()).await;
    assert!(job.errors[0].error.contains("429"), "{job:?}");
    let wait = (job.run_at - job.started_at.unwrap()).num_seconds();
    assert!((6..=8).contains(&wait), "Retry-After is kept: {wait}");
    for _ in 0..2 {
        fast_forward(&mut bench.conn, Duration::from_secs(60)).await;
        drain_until_empty(&worker::worker(&bench.context)).await;
    }
    let job = bench.find(job.id).await;
    assert_eq!((job.state, job.result), (JobState::Completed, Some(json!({"id": "m1"}))));
    let requests = requests.lock().await;
    assert_eq!(requests.len(), 3);
    for request in requests.iter() {
        let request = request.to_ascii_lowercase();
        assert!(request.contains(&format!("idempotency-key: job-{}\r\n", job.id)), "{request}");
        assert!(request.contains("authorization: bearer re_canary\r\n"));
        assert!(request.contains(r#""to":["a@example.com"]"#));
    }
}

#[tokio::test]
async fn a_mail_that_the_provider_calls_wrong_is_not_sent_again() {
    let mut bench = Bench::new().await;
    let (url, _) = provider(&[WRONG]).await;
    with_provider(&mut bench, url);
    let job = bench.run(mail()).await;
    assert_eq!((job.state, job.attempt), (JobState::Discarded, 1));
    assert!(job.errors[0].error.contains("422") && !job.errors[0].error.contains("canary"), "{job:?}");
}

#[tokio::test]
async fn a_mail_that_is_refused_for_a_reason_that_may_pass_is_kept_and_a_reused_key_is_not() {
    const LOCKED: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    const REUSED: &str = "HTTP/1.1 409 Conflict\r\ncontent-length: 37\r\nconnection: close\r\n\r\n{\"name\":\"invalid_idempotent_request\"}";
    const LARGE: &str = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for (answer, state) in
        [(LOCKED, JobState::Ready), (REUSED, JobState::Discarded), (LARGE, JobState::Discarded)]
    {
        let mut bench = Bench::new().await;
        let (url, _) = provider(Box::leak(Box::new([answer]))).await;
        with_provider(&mut bench, url);
        let job = bench.run(mail()).await;
        assert_eq!((job.state, job.errors.len()), (state, 1), "{answer}: {job:?}");
    }
}

#[tokio::test]
async fn of_a_providers_answer_without_an_end_the_beginning_is_enough() {
    for (status, state) in
        [("422 Unprocessable Entity", JobState::Discarded), ("200 OK", JobState::Completed)]
    {
        let mut bench = Bench::new().await;
        let endless =
            format!("HTTP/1.1 {status}\r\ncontent-length: 1000000000\r\n\r\n{}", "x".repeat(100_000));
        let (url, _) = provider(Box::leak(Box::new([&*endless.leak()]))).await;
        with_provider(&mut bench, url);
        // Less than the time that an answer may take.
        let job = tokio::time::timeout(Duration::from_secs(10), bench.run(mail()))
            .await
            .expect("it is not waited for");
        assert_eq!(job.state, state, "{job:?}");
        assert!(format!("{:?}", job.errors).len() < 1_000);
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_is_tried_again_and_the_key_stays_out_of_the_error() {
    let mut bench = Bench::new().await;
    with_provider(&mut bench, "http://127.0.0.1:1/emails".parse().unwrap());
    let job = bench.run(mail()).await;
    assert_eq!(job.state, JobState::Ready);
    assert!(!format!("{:?}", job.errors).contains("canary"));
}

#[tokio::test]
async fn without_a_provider_mail_goes_to_the_log_and_is_kept_in_development_alone() {
    let mut bench = Bench::new().await;
    let job = bench.run(mail()).await;
    assert_eq!(job.state, JobState::Completed);
    assert_eq!(job.result, Some(json!({ "id": null, "mail": mail() })));
    for environment in [Environment::Staging, Environment::Production] {
        bench.context.mailer = Mailer::from_config(&bench.context.config.mail, environment, http());
        let job = bench.run(mail()).await;
        assert_eq!((job.state, job.result), (JobState::Completed, Some(json!({ "id": null }))));
    }
}

/// Texts of the one-time tokens in what the provider was sent, in order.
fn tokens_in(requests: &[String]) -> Vec<OneTimeToken> {
    let token = |r: &String| r.find("ot_").and_then(|at| OneTimeToken::parse(&r[at..at + 46]));
    requests.iter().map(|r| token(r).expect("every mail holds a token")).collect()
}

async fn new_user(bench: &mut Bench) -> Uuid {
    let id = Uuid::now_v7();
    db::users::insert(&mut bench.conn, id, "ann@example.com", "no hash", "user").await.unwrap();
    id
}

async fn works(bench: &mut Bench, token: &OneTimeToken) -> bool {
    let now = runtime::Clock::system().now();
    one_time_tokens::find(&mut bench.conn, Purpose::VerifyEmail, &token.hash(), now).await.unwrap().is_some()
}

#[tokio::test]
async fn a_mail_with_a_token_that_is_tried_again_leaves_no_dead_link_and_a_later_one_does() {
    let mut bench = Bench::new().await;
    let (url, requests) = provider(&[DOWN, OK, OK]).await;
    with_provider(&mut bench, url);
    let user_id = new_user(&mut bench).await;
    let first = bench.run(AccountMail::VerifyEmail { user_id }).await;
    assert_eq!(first.state, JobState::Ready);
    let again = bench.enqueue(AccountMail::VerifyEmail { user_id }).await;
    assert_eq!(again, first.id, "asked for once more while the first one waits: the same job");
    fast_forward(&mut bench.conn, Duration::from_secs(60)).await;
    drain_until_empty(&worker::worker(&bench.context)).await;
    assert_eq!(bench.find(first.id).await.result, Some(json!({ "id": "m1" })));
    let sent = requests.lock().await.clone();
    let tokens = tokens_in(&sent);
    assert_ne!(tokens[0].hash(), tokens[1].hash());
    assert!(works(&mut bench, &tokens[0]).await && works(&mut bench, &tokens[1]).await);
    for (i, request) in sent.iter().enumerate() {
        let key = format!("idempotency-key: job-{}-{}\r\n", first.id, i + 1);
        assert!(request.to_ascii_lowercase().contains(&key), "{request}");
        assert!(request.contains("POST http://localhost:8080/v1/auth/verify-email"), "{request}");
    }
    bench.run(AccountMail::VerifyEmail { user_id }).await;
    let newest = tokens_in(&requests.lock().await.clone()).pop().unwrap();
    assert!(works(&mut bench, &newest).await);
    assert!(!works(&mut bench, &tokens[0]).await && !works(&mut bench, &tokens[1]).await);
}

#[tokio::test]
async fn links_in_mails_lead_to_the_front_end_and_hold_the_token_behind_the_hash() {
    let mut bench = Bench::new().await;
    let vars = MapVars::from([
        ("DATABASE_URL", bench.database.url()),
        ("REDIS_URL", "redis://localhost"),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("APP_URL", "https://app.example.com/"),
    ]);
    bench.context.config = WorkerConfig::from_vars(&vars).unwrap().into();
    let user_id = new_user(&mut bench).await;
    let job = bench.run(AccountMail::VerifyEmail { user_id }).await;
    let text = job.result.unwrap()["mail"]["text"].as_str().unwrap().to_owned();
    assert!(text.contains("\nhttps://app.example.com/verify-email#token=ot_"), "{text}");
    assert!(!text.contains("POST"), "{text}");
}

#[tokio::test]
async fn a_mail_that_has_become_pointless_is_not_sent() {
    let mut bench = Bench::new().await;
    let user_id = new_user(&mut bench).await;
    db::users::confirm_email(&mut bench.conn, user_id, "ann@example.com").await.unwrap();
    let ip = [127, 0, 0, 1].into();
    for mail in [
        AccountMail::VerifyEmail { user_id },
        AccountMail::VerifyEmail { user_id: Uuid::now_v7() },
        AccountMail::ResetPassword(Asked { email: "nobody@example.com".into(), ip, request_id: "r".into() }),
        AccountMail::Invite { invitation_id: Uuid::now_v7() },
    ] {
        let job = bench.run(mail).await;
        assert_eq!((job.state, job.result), (JobState::Completed, Some(json!({ "id": null }))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_worker_registers_its_schedule_makes_partitions_runs_jobs_and_ends_cleanly() {
    let mut bench = Bench::new().await;
    let life = Lifecycle::new(ShutdownConfig { delay: Duration::ZERO, budget: Duration::from_secs(5) });
    let handle = worker::start(bench.context.clone(), &life).await.unwrap();
    let registry = health::Registry::new(life.clone(), "test");
    handle.register_checks(&registry);
    let id = bench.enqueue(Echo { message: "hi".into(), sleep_ms: 0, fail_times: 0 }).await;
    for _ in 0..500 {
        let partitions: i64 =
            sqlx::query_scalar("select count(*) from job_done where kind = 'keep_partitions'")
                .fetch_one(&mut bench.conn)
                .await
                .unwrap();
        let ready = handle.last_tick_age().is_some() && partitions == 1;
        if ready && bench.find(id).await.state == JobState::Completed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(registry.is_ready().await, "{:?}", registry.report().await);
    let lines = jobs::cron_lines(&mut bench.conn).await.unwrap();
    let names: Vec<_> = lines.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["check_renewals", "cleanup", "heartbeat", "keep_partitions", "usage_rollup"]);
    let next = lines[2].next_tick.unwrap();
    assert_eq!(next.timestamp() % 60, 0, "the heartbeat is at the full minute");
    life.begin_shutdown();
    assert_eq!(life.run_until_stopped().await, 0);
    assert_eq!(life.failed_task(), None);
}

#[tokio::test]
async fn every_cron_line_has_a_name_of_its_own_and_a_job_that_this_worker_runs() {
    let bench = Bench::new().await;
    let worker = worker::worker(&bench.context);
    let kinds: HashSet<_> = worker.kinds().collect();
    let lines = worker::schedule::lines().unwrap();
    let names: HashSet<_> = lines.iter().map(jobs::CronLine::name).collect();
    assert_eq!(names.len(), lines.len());
    for line in &lines {
        assert!(kinds.contains(line.kind()), "{line:?}");
    }
    let listed: HashSet<_> = job_specs::KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, listed, "what the worker registers, and job_specs::KINDS");
    for user_job in job_specs::USER_JOBS {
        assert!(kinds.contains(user_job.name), "{user_job:?}");
    }
}
