//! The shared test servers: one pair for all, gone when nobody uses it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::open_dir;
use devstack::Record;
use devstack::shared::{Idle, TestServices, services_in};

const BRIEF: Idle = Idle { after: Duration::from_secs(3), every: Duration::from_secs(1) };

fn services(dir: &Path) -> TestServices {
    services_in(dir, "devstack-shared-test", BRIEF).unwrap()
}

fn records(dir: &Path) -> Vec<Record> {
    let text = fs::read_to_string(dir.join("current")).unwrap();
    let records = text.lines().filter_map(|line| {
        line.strip_prefix("postgres=").or(line.strip_prefix("redis=")).map(|record| record.parse().unwrap())
    });
    records.collect()
}

fn wait_until(what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !check() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn all_tests_get_the_same_pair_which_ends_when_idle_and_comes_back() {
    let dir = open_dir();
    let both: Vec<TestServices> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| services(dir.path()))).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(both.iter().all(|services| *services == both[0]));
    let running = records(dir.path());
    assert_eq!(running.len(), 2);

    // In use for longer than the idle time.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(services(dir.path()), both[0]);
    }
    wait_until("the servers outlive their tests", || running.iter().all(|record| !record.id.is_alive()));
    wait_until("the data outlives the servers", || {
        !fs::read_dir(dir.path())
            .unwrap()
            .any(|entry| entry.unwrap().file_name().as_encoded_bytes().starts_with(b"run-"))
    });
    assert_ne!(services(dir.path()), both[0]);
    end(dir.path());
}

#[test]
fn a_pair_of_which_one_died_is_replaced_as_a_whole() {
    let dir = open_dir();
    let first = services(dir.path());
    let old = records(dir.path());
    old[1].id.signal(nix::sys::signal::Signal::SIGKILL);
    wait_until("killed", || !old[1].id.is_alive());
    assert_ne!(services(dir.path()), first);
    assert!(!old[0].id.is_alive());
    end(dir.path());
}

/// Leaves no server behind, without waiting for the idle time.
fn end(dir: &Path) {
    let running = records(dir);
    for record in &running {
        record.clean_up(Duration::from_secs(10));
    }
    wait_until("the supervisor cleans up", || {
        !fs::read_dir(dir)
            .unwrap()
            .any(|entry| entry.unwrap().file_name().as_encoded_bytes().starts_with(b"run-"))
    });
}
