//! Real servers: what they survive.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::support::{open_dir, server_user, spec, start};
use devstack::{Lifetime, Services, Unavailable};
use nix::sys::signal::Signal;

#[test]
fn servers_run_as_an_ordinary_user_and_keep_their_secrets() {
    let dir = open_dir();
    let services = start(dir.path());
    let user = server_user();
    for service in [&services.postgres, &services.redis] {
        let (uid, arguments) = process(service.record().unwrap().id.pid);
        assert_eq!(uid, user.uid.as_raw(), "{}", service.name);
        let password = fs::read_to_string(dir.path().join(service.name).join("password")).unwrap();
        assert!(service.url.contains(password.trim()));
        assert!(!arguments.contains(password.trim()), "{}", service.name);
    }
    for secret in ["postgres/password", "redis/password", "redis/redis.conf"] {
        let meta = fs::metadata(dir.path().join(secret)).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, meta.uid()), (0o600, user.uid.as_raw()), "{secret}");
    }
}

#[test]
fn stopping_ends_the_processes_and_a_second_start_keeps_data_and_port() {
    let dir = open_dir();
    let mut services = start(dir.path());
    let records = [services.postgres.record().unwrap(), services.redis.record().unwrap()];
    let (url, cluster) = (services.postgres.url.clone(), cluster_id(dir.path()));
    services.stop();
    assert!(records.iter().all(|record| !record.id.is_alive()));
    let services = start(dir.path());
    assert_eq!((&services.postgres.url, cluster_id(dir.path())), (&url, cluster));
}

#[test]
fn throw_away_data_is_gone_after_the_stop() {
    let dir = open_dir();
    let services =
        Services::start(&devstack::Spec { lifetime: Lifetime::Throwaway, ..spec(dir.path()) }).unwrap();
    drop(services);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_port_that_someone_took_meanwhile_is_replaced() {
    let dir = open_dir();
    let mut services = start(dir.path());
    let (postgres, redis) = (services.postgres.port, services.redis.port);
    services.stop();
    let _taken = [
        TcpListener::bind(("127.0.0.1", postgres)).unwrap(),
        TcpListener::bind(("127.0.0.1", redis)).unwrap(),
    ];
    let services = start(dir.path());
    assert_ne!(services.postgres.port, postgres);
    assert_ne!(services.redis.port, redis);
}

#[test]
fn kill_9_of_the_server_leaves_nothing_that_stops_the_next_start() {
    let dir = open_dir();
    let services = start(dir.path());
    let cluster = cluster_id(dir.path());
    let killed = services.postgres.record().unwrap().id;
    killed.signal(Signal::SIGKILL);
    assert!(killed.wait_gone(Duration::from_secs(10)));
    assert!(dir.path().join("postgres/data/postmaster.pid").exists(), "killed servers leave their pid file");
    drop(services);
    let _services = start(dir.path());
    assert_eq!(cluster_id(dir.path()), cluster);
}

#[test]
fn a_stale_pid_file_whose_number_belongs_to_someone_else_is_removed_and_the_stranger_lives() {
    let dir = open_dir();
    start(dir.path()).stop();
    let user = server_user();
    let mut command = Command::new("sleep");
    command.arg("60");
    if nix::unistd::Uid::effective().is_root() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let mut stranger = command.spawn().unwrap();
    let pid_file = dir.path().join("postgres/data/postmaster.pid");
    fs::write(&pid_file, format!("{}\n{}\n0\n5432\n", stranger.id(), dir.path().display())).unwrap();
    let services = start(dir.path());
    assert!(services.postgres.record().unwrap().id.is_alive());
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger was hit");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_server_that_a_killed_command_left_behind_is_taken_over() {
    let dir = open_dir();
    let services = start(dir.path());
    let left = services.postgres.record().unwrap();
    services.postgres.release();
    let redis = services.redis.record().unwrap();
    services.redis.release();
    assert!(redis.clean_up(Duration::from_secs(10)));
    let services = start(dir.path());
    assert!(!left.id.is_alive());
    assert_ne!(services.postgres.record().unwrap().id, left.id);
}

#[test]
fn an_interrupted_initdb_is_made_anew() {
    let dir = open_dir();
    start(dir.path()).stop();
    let (data, partial) = (dir.path().join("postgres/data"), dir.path().join("postgres/data.partial"));
    fs::rename(&data, &partial).unwrap();
    let _services = start(dir.path());
    assert!(data.join("PG_VERSION").exists() && !partial.exists());
}

#[test]
fn data_of_another_major_version_is_refused_with_the_ways_out() {
    let dir = open_dir();
    start(dir.path()).stop();
    fs::write(dir.path().join("postgres/data/PG_VERSION"), "9\n").unwrap();
    let error = Services::start(&spec(dir.path())).unwrap_err();
    let text = error.downcast_ref::<Unavailable>().unwrap().to_string();
    for expected in ["written by Postgres 9", "--reset", "DEVSTACK_DIR"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_start_can_be_cancelled_and_leaves_nothing_running() {
    let dir = open_dir();
    let error = Services::start(&devstack::Spec { cancelled: &|| true, ..spec(dir.path()) }).unwrap_err();
    assert!(error.to_string().contains("stopped before it was ready"), "{error:#}");
    assert!(!dir.path().join("postgres/data/postmaster.pid").exists());
}

/// User and arguments of a process. Small Linux machines have no `ps`.
fn process(pid: i32) -> (u32, String) {
    if cfg!(target_os = "linux") {
        let dir = std::path::PathBuf::from(format!("/proc/{pid}"));
        let arguments = fs::read(dir.join("cmdline")).unwrap();
        return (fs::metadata(dir).unwrap().uid(), String::from_utf8_lossy(&arguments).into_owned());
    }
    let out = Command::new("ps").args(["-ww", "-o", "uid=,args=", "-p", &pid.to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let (uid, arguments) = text.split_once(' ').unwrap();
    (uid.parse().unwrap(), arguments.to_owned())
}

/// The cluster's own identity, written once by initdb.
fn cluster_id(dir: &std::path::Path) -> Vec<u8> {
    fs::read(dir.join("postgres/data/global/pg_control")).unwrap()[..8].to_vec()
}
