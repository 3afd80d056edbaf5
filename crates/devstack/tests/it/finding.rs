//! What is used, what is installed, and what is said when there is nothing.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::{open_dir, script, spec};
use devstack::{Install, Services, Spec, System, Unavailable};
use nix::unistd::Uid;

/// A machine that has nothing but what is in `dirs`.
fn bare(dirs: &[&Path]) -> System {
    System {
        path: dirs.iter().map(|dir| (*dir).to_owned()).collect(),
        server_dirs: Vec::new(),
        terminal: false,
    }
}

fn refusal(spec: &Spec<'_>) -> String {
    let error = Services::start(spec).unwrap_err();
    error.downcast_ref::<Unavailable>().unwrap_or_else(|| panic!("{error:#}")).to_string()
}

fn real_redis() -> PathBuf {
    let system = System::current();
    let dirs = system.path.iter().flat_map(|dir| [dir.join("redis-server"), dir.join("valkey-server")]);
    dirs.into_iter().find(|path| path.exists()).expect("the other tests need a Redis too")
}

#[test]
fn a_machine_with_nothing_gets_told_every_way_out() {
    let dir = open_dir();
    let text = refusal(&Spec { system: bare(&[]), ..spec(dir.path()) });
    for expected in [
        "Postgres and Redis cannot be had",
        "no package manager",
        "no docker command",
        "apt-get install postgresql redis-server",
        "Docker",
        "DATABASE_URL=",
        "REDIS_URL=",
    ] {
        assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
    }
}

#[test]
fn a_lone_postgres_on_the_path_is_not_taken_for_a_server() {
    let (dir, bin) = (open_dir(), open_dir());
    script(&bin.path().join("postgres"), "echo 'postgres (PostgreSQL) 17.1'");
    let text = refusal(&Spec { system: bare(&[bin.path()]), ..spec(dir.path()) });
    assert!(text.contains("no Postgres server programs"), "{text}");
}

#[test]
fn versions_that_are_too_old_are_named() {
    let (dir, bin) = (open_dir(), open_dir());
    for name in ["postgres", "initdb", "pg_ctl"] {
        script(&bin.path().join(name), "echo 'postgres (PostgreSQL) 12.9'");
    }
    script(&bin.path().join("redis-server"), "echo 'Redis server v=5.0.3 sha=0'");
    let text = refusal(&Spec { system: bare(&[bin.path()]), ..spec(dir.path()) });
    assert!(text.contains("Postgres 12 in") && text.contains("14 or newer"), "{text}");
    assert!(text.contains("Redis 5.0 in") && text.contains("6.2 or newer"), "{text}");
}

#[test]
fn a_named_server_that_does_not_answer_is_reported_without_its_password() {
    let dir = open_dir();
    let port = devstack::ports::free_port(None).unwrap();
    let url = format!("postgres://me:secret@127.0.0.1:{port}/base");
    let text = refusal(&Spec { database_url: Some(url), ..spec(dir.path()) });
    assert!(text.contains(&format!("nothing answers at 127.0.0.1:{port}")), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn named_servers_are_used_as_they_are_and_left_alone() {
    let dir = open_dir();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let (database, redis) =
        (format!("postgres://u:p@127.0.0.1:{port}/x"), format!("redis://127.0.0.1:{port}"));
    let (database_url, redis_url) = (Some(database.clone()), Some(redis.clone()));
    let mut services =
        Services::start(&Spec { database_url, redis_url, system: bare(&[]), ..spec(dir.path()) }).unwrap();
    assert_eq!((&services.postgres.url, &services.redis.url), (&database, &redis));
    assert!(services.postgres.record().is_none() && services.redis.record().is_none());
    services.stop();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was created");
}

/// A package manager that notes its arguments and "installs" Redis.
fn fake_apt(bin: &Path) -> PathBuf {
    let log = bin.join("apt.log");
    let (redis, target) = (real_redis(), bin.join("redis-server"));
    let install = format!("ln -sf {} {}", redis.display(), target.display());
    script(
        &bin.join("apt-get"),
        &format!("echo \"$*\" >> {}\n[ \"$1\" != install ] || {install}", log.display()),
    );
    script(&bin.join("sudo"), "exec \"$@\"");
    log
}

#[test]
fn what_is_missing_is_installed_when_that_is_allowed() {
    let (dir, bin) = (open_dir(), open_dir());
    let log = fake_apt(bin.path());
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let database_url = Some(format!("postgres://127.0.0.1:{}/x", server.local_addr().unwrap().port()));
    let system = bare(&[bin.path()]);
    let services =
        Services::start(&Spec { system, database_url, install: Install::Yes, ..spec(dir.path()) }).unwrap();
    assert!(services.redis.record().is_some());
    let calls = fs::read_to_string(log).unwrap();
    assert_eq!(calls, "update\ninstall -y --no-install-recommends redis-server\n");
}

#[test]
fn nothing_is_installed_against_the_will_and_the_command_is_shown() {
    let (dir, bin) = (open_dir(), open_dir());
    let log = fake_apt(bin.path());
    let text = refusal(&Spec { system: bare(&[bin.path()]), install: Install::Never, ..spec(dir.path()) });
    assert!(!log.exists());
    assert!(text.contains("--no-install") && text.contains("postgresql redis-server"), "{text}");
}

#[test]
fn without_a_terminal_only_root_installs_unasked() {
    let (dir, bin) = (open_dir(), open_dir());
    let log = fake_apt(bin.path());
    let text = refusal(&Spec { system: bare(&[bin.path()]), install: Install::Ask, ..spec(dir.path()) });
    assert_eq!(log.exists(), Uid::effective().is_root(), "{text}");
}

#[test]
fn a_failed_installation_is_reported_with_its_command() {
    let (dir, bin) = (open_dir(), open_dir());
    script(&bin.path().join("apt-get"), "exit 100");
    script(&bin.path().join("sudo"), "exec \"$@\"");
    let text = refusal(&Spec { system: bare(&[bin.path()]), install: Install::Yes, ..spec(dir.path()) });
    assert!(text.contains("update` failed"), "{text}");
}

#[test]
fn a_docker_client_without_daemon_is_no_way_out() {
    let (dir, bin) = (open_dir(), open_dir());
    script(&bin.path().join("docker"), "echo 'Cannot connect to the Docker daemon' >&2; exit 1");
    let text = refusal(&Spec { system: bare(&[bin.path()]), ..spec(dir.path()) });
    assert!(text.contains("no Docker daemon answers"), "{text}");
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_the_ways_out() {
    let dir = open_dir();
    // Root may write everywhere except where the kernel offers no files at all.
    let target = if Uid::effective().is_root() {
        PathBuf::from("/proc/ballast")
    } else {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
        dir.path().join("data")
    };
    let text = refusal(&spec(&target));
    assert!(text.contains("cannot write to") && text.contains("DEVSTACK_DIR="), "{text}");
}

#[test]
fn a_directory_that_the_server_account_cannot_reach_is_named() {
    if !Uid::effective().is_root() {
        return; // An ordinary user's servers run as that user.
    }
    let closed = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
    let text = refusal(&spec(&closed.path().join("data")));
    assert!(text.contains("cannot reach") && text.contains("DEVSTACK_DIR="), "{text}");
}
