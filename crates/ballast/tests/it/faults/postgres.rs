//! Postgres is killed, paused, unreachable, or has no connection left.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::{Connection as _, PgConnection};
use test_support::{FaultProxy, Mode, OwnServices};

use super::{MS, S, STORED, Stand, load::Load, load::Samples, sqlstate};
use crate::support::{eventually, in_full};

/// So that a test need not wait as long as users may.
const SHORT: [(&str, &str); 3] = [
    ("DATABASE_ACQUIRE_TIMEOUT", "3s"),
    ("DATABASE_STATEMENT_TIMEOUT", "2s"),
    ("DATABASE_CALL_DEADLINE", "3s"),
];
/// The two together, and what a busy machine takes on top.
const LONGEST: Duration = Duration::from_secs(6 + 4);
const PER_SECOND: u32 = 15;

/// Asserts that every request was answered, with 200 or 503, none later than it may take.
fn all_ended(what: &str, load: &Samples) {
    let statuses = load.statuses();
    eprintln!("{what}: {statuses:?}, the longest {:?}", load.percentile(100));
    assert!(statuses.keys().all(|status| [200, 503].contains(status)), "{what}: {statuses:?}");
    assert!(statuses.contains_key(&503), "{what}: it was not noticed: {statuses:?}");
    assert!(load.percentile(100) < LONGEST, "{what}: {:?}", load.percentile(100));
}

/// While the database is out: health stays quick and says so, and requests are told when to come again.
async fn well_told(stand: &Stand) {
    for _ in 0..5 {
        let asked = Instant::now();
        assert_eq!(stand.status("/livez").await, 200);
        assert!(asked.elapsed() < S(1), "/livez took {:?}", asked.elapsed());
    }
    // A server that was killed may answer once more on connections that it has.
    stand.until(STORED, 503, S(10)).await;
    let asked = Instant::now();
    stand.expect_database_unavailable().await;
    assert!(asked.elapsed() < LONGEST, "{:?}", asked.elapsed());
    stand.until("/readyz", 503, S(10)).await;
}

/// `bound` is that of a quiet machine.
async fn recovered(stand: &mut Stand, what: &str, since: Instant, bound: Duration) {
    // Not one connection that is dead is left in the pool.
    let mut in_a_row = 0;
    eventually(&format!("{what}: ten answers in a row"), S(40), async || {
        in_a_row = if stand.status(STORED).await == 200 { in_a_row + 1 } else { 0 };
        in_a_row == 10
    })
    .await;
    let took = since.elapsed();
    eprintln!("{what}: well again after {took:?}");
    assert!(took < if in_full() { bound } else { S(25) }, "{what}: well again only after {took:?}");
    stand.until("/readyz", 200, S(20)).await;
    assert!(stand.api.is_running(), "{}", stand.api.output());
}

/// How long Postgres is away in case D2.
fn outage() -> Duration {
    S(if in_full() { 60 } else { 6 })
}

async fn admin(stand: &Stand) -> PgConnection {
    PgConnection::connect(&stand.services().database_url).await.unwrap()
}

const BACKENDS: &str = "select pid from pg_stat_activity where application_name like 'ballast%'";
const TERMINATE: &str =
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'ballast%'";

/// Case D1, 57P01: a failover or an administrator ends every connection.
#[tokio::test(flavor = "multi_thread")]
async fn terminated_connections_and_a_killed_server_are_503s_and_heal_without_a_restart() {
    let mut stand = Stand::start(&SHORT).await;
    let load = Load::start(&stand, STORED, PER_SECOND);
    let mut other = admin(&stand).await;
    for _ in 0..5 {
        tokio::time::sleep(MS(300)).await;
        sqlx::raw_sql(TERMINATE).execute(&mut other).await.unwrap();
    }
    let terminated = Instant::now();
    recovered(&mut stand, "connections terminated", terminated, S(5)).await;

    drop(other);
    stand.services().postgres().signal(Signal::SIGKILL);
    well_told(&stand).await;
    stand.restart_services().await;
    let restarted = Instant::now();
    recovered(&mut stand, "server killed", restarted, S(5)).await;
    all_ended("terminated and killed", &load.end().await);
}

/// Case D2: the processes of Postgres stand still, all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_paused_ends_no_request_late_and_the_pool_heals() {
    let mut stand = Stand::start(&SHORT).await;
    let load = Load::start(&stand, STORED, PER_SECOND);
    tokio::time::sleep(MS(500)).await;
    let mut other = admin(&stand).await;
    let mut processes: Vec<i32> =
        sqlx::query_scalar("select pid from pg_stat_activity").fetch_all(&mut other).await.unwrap();
    // Each backend is a process of its own, and the first of them makes the others.
    let file = sqlx::query_scalar::<_, String>("show data_directory").fetch_one(&mut other).await.unwrap();
    let first = std::fs::read_to_string(format!("{file}/postmaster.pid")).unwrap();
    processes.push(first.lines().next().unwrap().trim().parse().unwrap());
    let all = |signal| {
        for pid in &processes {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    };
    all(Signal::SIGSTOP);
    well_told(&stand).await;
    tokio::time::sleep(outage()).await;
    all(Signal::SIGCONT);
    recovered(&mut stand, "paused", Instant::now(), S(10)).await;
    all_ended("paused", &load.end().await);
}

/// Case D2: a partition. Nothing arrives, and nothing says so.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_postgres_ends_no_request_late_and_the_pool_heals() {
    let services = OwnServices::start().await;
    let (proxy, url) = FaultProxy::in_front_of(&services.database_url).await;
    let mut stand = Stand::over(services, &[SHORT.as_slice(), &[("DATABASE_URL", &url)]].concat()).await;
    let load = Load::start(&stand, STORED, PER_SECOND);
    tokio::time::sleep(MS(500)).await;
    proxy.set(Mode::Blackhole);
    well_told(&stand).await;
    tokio::time::sleep(outage()).await;
    proxy.set(Mode::Pass);
    recovered(&mut stand, "unreachable", Instant::now(), S(10)).await;
    all_ended("unreachable", &load.end().await);
}

/// Case D3, 53300: others have every connection of the server.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_left_on_the_server_requests_are_told_so_and_health_says_why() {
    let mut stand = Stand::start(&SHORT).await;
    let mut other = admin(&stand).await;
    let url = stand.services().database_url.clone();
    let mut held = Vec::new();
    // Those of the API go too, one by one, until nothing is left for it.
    let refused = loop {
        match PgConnection::connect(&url).await {
            Ok(connection) => held.push(connection),
            Err(error) => {
                let ours: Option<i32> =
                    sqlx::query_scalar(BACKENDS).fetch_optional(&mut other).await.unwrap();
                let Some(pid) = ours else { break error };
                let terminate = "select pg_terminate_backend($1)";
                sqlx::query(terminate).bind(pid).execute(&mut other).await.unwrap();
            }
        }
        assert!(held.len() < 1_000, "there is no end of connections");
    };
    assert_eq!(sqlstate(&refused).as_deref(), Some("53300"), "{refused}");
    well_told(&stand).await;
    eventually("the report says why", S(15), async || {
        let report = stand.get("/health").send().await.unwrap().text().await.unwrap();
        report.contains("no connection left")
    })
    .await;
    drop(held);
    recovered(&mut stand, "connections there again", Instant::now(), S(10)).await;
}

/// Case D3: the pool is used up by queries that wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_used_up_by_slow_queries_is_told_at_once_and_does_not_take_the_replica_out() {
    let mut stand = Stand::start(&SHORT).await;
    let mut other = admin(&stand).await;
    sqlx::raw_sql("begin; lock table users in access exclusive mode").execute(&mut other).await.unwrap();
    let load = Load::start(&stand, STORED, PER_SECOND);
    eventually("the pool is used up", S(20), async || stand.status(STORED).await == 503).await;
    let until = Instant::now() + S(5);
    while Instant::now() < until {
        for path in ["/livez", "/readyz", super::ADMITTED] {
            let asked = Instant::now();
            assert_eq!(stand.status(path).await, 200, "{path}");
            assert!(asked.elapsed() < S(2), "{path} took {:?}", asked.elapsed());
        }
        tokio::time::sleep(MS(100)).await;
    }
    stand.expect_database_unavailable().await;
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    recovered(&mut stand, "locks released", Instant::now(), S(10)).await;
    all_ended("slow queries", &load.end().await);
}
