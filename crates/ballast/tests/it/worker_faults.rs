//! The real worker while it is paused, and while Postgres is restarted, terminates connections, or is out of reach.

use std::time::{Duration, Instant};

use jobs::{EnqueueOptions, JobState, JobView};
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use test_support::{FaultProxy, Mode, OwnServices, TestDatabase, test_redis};

use crate::support::{Deployment, PASSWORD, Process, eventually, free_port, in_full, ready};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;

async fn echo(c: &mut PgConnection, sleep_ms: u64) -> i64 {
    let args = json!({ "message": "x", "sleep_ms": sleep_ms });
    jobs::enqueue_raw(c, "echo", args, EnqueueOptions::default()).await.unwrap().id()
}

async fn until(c: &mut PgConnection, id: i64, state: JobState) -> JobView {
    eventually(&format!("job {id} is {state:?}"), S(60), async || {
        jobs::find(c, id).await.unwrap().unwrap().state == state
    })
    .await;
    jobs::find(c, id).await.unwrap().unwrap()
}

/// Cases W3 and W4.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_worker_comes_back_to_a_job_that_is_no_longer_its_own_and_leaves_alone_what_it_does_not_know()
 {
    let deployment = Deployment::new().await;
    let mut c = deployment.database.pool().acquire().await.unwrap();
    let future = jobs::enqueue_raw(&mut c, "from_the_future", json!({}), EnqueueOptions::default()).await;
    let future = future.unwrap().id();
    let (one, two) = (free_port(), free_port());
    let mut paused = deployment.start("worker", one, &[("WORKER_LEASE", "3s")]);
    ready(one).await;
    let id = echo(&mut c, 2_000).await;
    until(&mut c, id, JobState::Running).await;
    paused.signal(Signal::SIGSTOP);
    let _healthy = deployment.start("worker", two, &[]);
    eventually("the healthy one has the job", S(60), async || {
        let job = jobs::find(&mut c, id).await.unwrap().unwrap();
        job.attempt == 2 && job.state != JobState::Ready
    })
    .await;
    paused.signal(Signal::SIGCONT);
    let job = until(&mut c, id, JobState::Completed).await;
    assert_eq!(job.result.as_ref().unwrap()["attempt"], 2, "{job:?}");
    assert_eq!((job.errors.len(), job.errors[0].error.as_str()), (1, "the worker was lost"), "{job:?}");
    eventually("the paused one knows", S(30), async || paused.output().contains("the lease was lost")).await;
    ready(one).await;
    assert!(paused.is_running());
    let unknown = jobs::find(&mut c, future).await.unwrap().unwrap();
    assert_eq!((unknown.state, unknown.attempt), (JobState::Ready, 0), "a newer build may know it");
}

/// Cases W6 and D1: connections that end during claims, acknowledgements, heartbeats and listening, and then the server itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_connections_and_server_are_killed_again_and_again_does_every_job() {
    let mut services = OwnServices::start().await;
    let url = services.database_url.clone();
    let port = free_port();
    let port_text = port.to_string();
    let vars = [
        ("PORT", port_text.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", url.as_str()),
        ("REDIS_URL", services.redis_url.as_str()),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("LOG_FORMAT", "json"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let vars: Vec<(&str, &str)> = vars.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert!(Process::command(&["migrate", "up"], &vars).status().unwrap().success());
    let mut worker = Process::start(&["worker"], &vars);
    ready(port).await;
    let mut ids = Vec::new();
    for round in 0..3 {
        let mut c = PgConnection::connect(&url).await.unwrap();
        let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                         where datname = current_database() and pid <> pg_backend_pid()";
        let begun = Instant::now();
        while begun.elapsed() < S(4) {
            for sleep_ms in [0, 200] {
                ids.push(echo(&mut c, sleep_ms).await);
            }
            if ids.len() % 20 == 0 {
                sqlx::raw_sql(terminate).execute(&mut c).await.unwrap();
            }
            tokio::time::sleep(MS(20)).await;
        }
        let unfinished = echo(&mut c, 1_000).await;
        until(&mut c, unfinished, JobState::Running).await;
        ids.push(unfinished);
        // The last time without a good-bye.
        services.postgres().signal(if round == 2 { Signal::SIGKILL } else { Signal::SIGINT });
        services = services.restart().await;
        assert_eq!(services.database_url, url, "somebody took the port: run the test again");
    }
    let mut c = PgConnection::connect(&url).await.unwrap();
    eventually("every job is done", S(90), async || {
        let sql = "select count(*) from job where kind = 'echo'";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut c).await.unwrap() == 0
    })
    .await;
    let sql = "select id, state || ' ' || errors::text from job_done where kind = 'echo'";
    let ended: Vec<(i64, String)> = sqlx::query_as(sql).fetch_all(&mut c).await.unwrap();
    let others: Vec<_> = ended.iter().filter(|(_, state)| !state.starts_with("completed")).collect();
    assert!(others.is_empty(), "{others:?}");
    let mut done: Vec<i64> = ended.iter().map(|(id, _)| *id).collect();
    done.sort_unstable();
    assert_eq!(done, ids, "each once");
    ready(port).await;
    assert!(worker.is_running(), "{}", worker.output());
}

/// Case D2: Postgres does not answer, and does not refuse either.
#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_out_of_reach_requests_end_in_time_and_afterwards_all_is_well_and_no_job_is_lost() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let (proxy, url) = FaultProxy::in_front_of(database.url()).await;
    let (api, worker) = (free_port(), free_port());
    let vars = |port: u16| {
        [
            ("PORT", port.to_string()),
            ("HOST", "127.0.0.1".to_owned()),
            ("DATABASE_URL", url.clone()),
            ("DATABASE_POOL_SIZE", "5".to_owned()),
            ("REDIS_URL", redis.url.clone()),
            ("REDIS_KEY_PREFIX", redis.prefix.clone()),
            ("ENGINE_URL", "http://127.0.0.1:1/v1".to_owned()),
            ("WORKER_LEASE", "6s".to_owned()),
            ("RATE_LIMIT_LOGIN", "100000/1m".to_owned()),
            ("RATE_LIMIT_GLOBAL", "100000/1m".to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
        ]
    };
    let start = |role: &str, port: u16| {
        let vars = vars(port);
        Process::start(&[role], &vars.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    let (mut api_process, mut worker_process) = (start("api", api), start("worker", worker));
    ready(api).await;
    ready(worker).await;
    let mut c = PgConnection::connect(database.url()).await.unwrap();
    let id = echo(&mut c, 3_000).await;
    until(&mut c, id, JobState::Running).await;
    proxy.set(Mode::Blackhole);
    let cut_at = Instant::now();
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://127.0.0.1:{api}{path}");
    let credentials = json!({ "email": "nobody@example.com", "password": PASSWORD });
    // Of the first some hold the pool's connections until the call's deadline, others find none.
    let requests = (0..20).map(|_| async {
        let begun = Instant::now();
        let answer = client.post(url("/v1/auth/login")).json(&credentials).send().await.unwrap();
        (answer.status().as_u16(), answer.headers().contains_key("retry-after"), begun.elapsed())
    });
    for (status, retry_after, took) in futures_util::future::join_all(requests).await {
        assert_eq!((status, retry_after), (503, true), "{took:?}");
        assert!(took < S(30), "{took:?}");
    }
    for path in ["/livez", "/readyz"] {
        let begun = Instant::now();
        let status = client.get(url(path)).send().await.unwrap().status().as_u16();
        assert_eq!(status, if path == "/livez" { 200 } else { 503 });
        assert!(begun.elapsed() < S(5), "{path}: {:?}", begun.elapsed());
    }
    // Nobody holds the job for ever: the lease has run out, and another worker takes it.
    let other = free_port();
    let deployment = Deployment::new().await;
    let _other = deployment.start("worker", other, &database.variables());
    let job = until(&mut c, id, JobState::Completed).await;
    assert_eq!(job.result.as_ref().unwrap()["attempt"], 2, "{job:?}");
    tokio::time::sleep(S(if in_full() { 60 } else { 12 }).saturating_sub(cut_at.elapsed())).await;
    proxy.set(Mode::Pass);
    let healed = Instant::now();
    eventually("the API is well again", S(30), async || {
        let answer = client.post(url("/v1/auth/login")).json(&credentials).send().await.unwrap();
        answer.status() == 401
    })
    .await;
    ready(worker).await;
    let took = healed.elapsed();
    println!("well again {took:?} after the partition");
    assert!(took < S(if in_full() { 10 } else { 20 }), "{took:?}");
    let job = jobs::find(&mut c, id).await.unwrap().unwrap();
    assert_eq!((job.state, job.attempt), (JobState::Completed, 2), "the late outcome is void: {job:?}");
    assert!(worker_process.output().contains("the lease was lost"), "{}", worker_process.output());
    assert!(api_process.is_running() && worker_process.is_running());
}
