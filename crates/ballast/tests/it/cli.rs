//! The binary's commands.

use std::{process::Output, time::Duration};

use test_support::{TestDatabase, test_redis};

use crate::support::{Process, free_port};

pub(crate) fn run(arguments: &[&str], vars: &[(&str, &str)]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Process::command(arguments, vars).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in [
        "api",
        "worker",
        "all",
        "jobs",
        "migrate",
        "seed",
        "healthcheck",
        "doctor",
        "keygen",
        "user",
        "credentials",
        "engine-sim",
    ] {
        let (code, stdout, _) = run(&[command, "--help"], &[]);
        assert_eq!(code, 0, "{command}");
        assert!(stdout.contains("Example") && stdout.contains(command), "{stdout}");
    }
    for command in ["list", "show", "retry", "cancel", "enqueue", "queues", "pause", "resume", "cron"] {
        let (code, stdout, _) = run(&["jobs", command, "--help"], &[]);
        assert_eq!(code, 0, "{command}");
        assert!(stdout.contains(&format!("ballast jobs {command}")), "{stdout}");
    }
    assert_eq!(run(&["nonsense"], &[]).0, 2);
}

#[test]
fn a_wrong_configuration_is_told_whole_with_exit_code_78_and_without_secrets() {
    let vars = [
        ("APP_ENV", "production"),
        ("PORT", "eighty"),
        ("DATABASE_URL", "nonsense://hunter2"),
        ("SERVER_SECRET", "hunter2"),
    ];
    for role in ["api", "worker", "all", "doctor"] {
        let started = std::time::Instant::now();
        let (code, stdout, stderr) = run(&[role], &vars);
        assert_eq!(code, 78, "{role}: {stderr}");
        assert!(started.elapsed() < Duration::from_secs(10));
        for name in ["PORT", "DATABASE_URL", "REDIS_URL"] {
            assert!(stderr.contains(name), "{role}: {stderr}");
        }
        assert!(!stderr.contains("hunter2") && !stdout.contains("hunter2"), "{role}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_migrators_at_once_apply_everything_once() {
    let database = TestDatabase::empty().await;
    let vars = [("DATABASE_URL", database.url())];
    let mut running: Vec<Process> = (0..3).map(|_| Process::start(&["migrate", "up"], &vars)).collect();
    let mut outputs = String::new();
    for process in &mut running {
        let (status, _) = process.wait(Duration::from_secs(60)).await;
        assert!(status.success(), "{}", process.output());
        outputs.push_str(&process.output());
    }
    assert_eq!(outputs.matches("applied").count(), 1, "{outputs}");
    assert_eq!(outputs.matches("nothing to do").count(), 2, "{outputs}");
    let (code, status, _) = run(&["migrate", "status"], &vars);
    assert_eq!((code, status.contains("0 pending")), (0, true), "{status}");
}

#[tokio::test]
async fn migrations_can_be_taken_back_and_applied_again() {
    let database = TestDatabase::empty().await;
    let vars = [("DATABASE_URL", database.url())];
    assert_eq!(run(&["migrate"], &vars).0, 0);
    assert_eq!(run(&["migrate", "reset"], &vars).0, 1, "asks for --yes");
    let (code, stdout, stderr) = run(&["migrate", "reset", "--yes"], &vars);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(run(&["migrate", "revert"], &vars).1.contains("took back"));
    assert!(run(&["migrate", "up"], &vars).1.contains("applied 1 migration"));
}

#[tokio::test]
async fn a_held_migration_lock_is_reported_after_the_wait() {
    let database = TestDatabase::empty().await;
    let mut holder = database.pool().acquire().await.unwrap();
    sqlx::query("select pg_advisory_lock($1)")
        .bind(0x6261_6c6c_6173_7401_i64)
        .execute(&mut *holder)
        .await
        .unwrap();
    let (code, _, stderr) = run(&["migrate", "up", "--wait", "1"], &[("DATABASE_URL", database.url())]);
    assert_eq!(code, 1);
    assert!(stderr.contains("migration lock") && stderr.contains("pg_locks"), "{stderr}");
}

#[tokio::test]
async fn seeding_twice_gives_the_same_and_never_outside_development() {
    let database = TestDatabase::create().await;
    let vars = [("DATABASE_URL", database.url())];
    let first = run(&["seed", "--json"], &vars);
    assert_eq!(first.0, 0, "{}", first.2);
    assert_eq!(first.1, run(&["seed", "--json"], &vars).1);
    let production = [("DATABASE_URL", database.url()), ("APP_ENV", "production")];
    let (code, _, stderr) = run(&["seed"], &production);
    assert_eq!((code, stderr.contains("development only")), (1, true), "{stderr}");
    assert_eq!(run(&["migrate", "reset", "--yes"], &production).0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_what_is_wrong_and_what_to_do() {
    let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
    let engine = engine_sim::Sim::start(engine_sim::SimConfig::instant()).await;
    let url = format!("{}/v1", engine.url());
    let second = format!("second={url}");
    let vars = [
        ("DATABASE_URL", database.url()),
        ("REDIS_URL", redis.url.as_str()),
        ("ENGINE_URL", url.as_str()),
        ("ENGINES", second.as_str()),
        ("DATABASE_POOL_SIZE", "3"),
    ];
    let (code, stdout, stderr) = tokio::task::block_in_place(|| run(&["doctor"], &vars));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("ok    engine ") && stdout.contains("ok    engine:second"), "{stdout}");

    // Old and new release side by side, two replicas and a worker, which has two connections beside its pool.
    let max: String = sqlx::query_scalar("select current_setting('max_connections')")
        .fetch_one(database.pool())
        .await
        .unwrap();
    let sum = format!("ok    connections  2 x (2 api x 3 + 1 worker x 3 + 2) = 22 of {max}");
    assert!(stdout.contains(&sum), "{sum}: {stdout}");
    let too_many = vars.map(|(name, value)| (name, if name == "DATABASE_POOL_SIZE" { "400" } else { value }));
    let (code, stdout, _) = tokio::task::block_in_place(|| run(&["doctor"], &too_many));
    assert_eq!(code, 1, "{stdout}");
    let sum =
        format!("FAIL  connections  2 x (2 api x 400 + 1 worker x 400 + 2) = 2404 of {max} is too much");
    assert!(stdout.contains(&sum), "{sum}: {stdout}");
    assert_eq!(stdout.matches("FAIL").count(), 1, "{stdout}");
    let bad = [
        ("DATABASE_URL", "postgres://nobody:wrong@127.0.0.1:1/x"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ("ENGINES", "second=http://127.0.0.1:1/v1"),
    ];
    let (code, stdout, _) = run(&["doctor"], &bad);
    assert_eq!(code, 1);
    for what in ["FAIL  postgres", "FAIL  redis", "FAIL  engine ", "FAIL  engine:second"] {
        assert!(stdout.contains(what), "{stdout}");
    }
}

#[test]
fn an_unreachable_role_is_unhealthy() {
    let port = free_port().to_string();
    let (code, _, stderr) = run(&["healthcheck"], &[("PORT", &port)]);
    assert_eq!((code, stderr.contains("nothing listens")), (1, true), "{stderr}");
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let vars = [
        ("PORT", port.as_str()),
        ("HOST", "127.0.0.1"),
        ("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("ENGINE_URL", "http://127.0.0.1:1/v1"),
    ];
    let mut api = Process::start(&["api"], &vars);
    let (status, _) = api.wait(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(1));
    assert!(api.output().contains("PORT") && api.output().contains(&port), "{}", api.output());
}
