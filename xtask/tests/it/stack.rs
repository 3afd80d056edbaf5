//! `cargo stack`: order, clean ends, and what is left after rude ones.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::running::{Bench, Foreground, assert_all_ended, text};

#[test]
fn ctrl_c_drains_api_and_worker_before_anything_they_need_is_stopped() {
    let bench = Bench::new();
    let mut stack = bench.start();
    let records = bench.records();
    let names: Vec<&str> = records.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(names, ["postgres", "redis", "engine", "api", "worker"]);
    stack.signal(Signal::SIGINT);
    assert_eq!(stack.wait().code(), Some(0), "{}", stack.text());
    assert_all_ended(&records);
    assert!(!bench.state_file().exists());

    let events = bench.events();
    let at =
        |event: &str| events.iter().position(|e| e == event).unwrap_or_else(|| panic!("{event}: {events:?}"));
    let started = ["migrate started", "seed started", "engine-sim started", "api started"].map(at);
    assert!(started.is_sorted(), "{events:?}");
    let asked = at("api asked to stop").max(at("worker asked to stop"));
    let drained = [at("api drained"), at("worker drained")];
    assert!(drained.iter().all(|drained| *drained > asked), "both drain at the same time: {events:?}");
    assert!(at("engine-sim asked to stop") > drained[0].max(drained[1]), "{events:?}");
}

#[test]
fn a_stack_says_how_to_use_it() {
    let bench = Bench::new();
    let stack = bench.start();
    let shown = stack.text();
    let api = format!("http://127.0.0.1:{}", bench.ports[0]);
    for expected in [
        format!("TOKEN=$(curl -s {api}/v1/auth/login"),
        format!("curl -N {api}/v1/chat/completions"),
        format!("OpenAI(base_url=\"{api}/v1\", api_key=\"stub-key\")"),
        format!("api     | api listens on {} as development", bench.ports[0]),
        format!("worker  | worker listens on {} as development", bench.ports[2]),
    ] {
        assert!(shown.contains(&expected), "`{expected}` is missing in:\n{shown}");
    }
    assert!(!shown.contains('\x1b'), "no colors where nobody sees them");
}

#[test]
fn sigterm_and_a_closed_terminal_stop_everything_too() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let bench = Bench::new();
        let mut stack = bench.start();
        let records = bench.records();
        stack.signal(signal);
        assert_eq!(stack.wait().code(), Some(0), "{signal}: {}", stack.text());
        assert_all_ended(&records);
        assert!(bench.events().contains(&"worker drained".to_owned()));
    }
}

#[test]
fn a_second_ctrl_c_ends_what_does_not_want_to_end() {
    let bench = Bench::new();
    let mut command = bench.with_stub(&[]);
    command.env("STUB_STUBBORN", "api");
    let mut stack = Foreground::spawn(command);
    stack.wait_for("Stop: Ctrl-C");
    let records = bench.records();
    stack.signal(Signal::SIGINT);
    stack.wait_for("draining");
    std::thread::sleep(Duration::from_secs(1));
    assert!(stack.child.try_wait().unwrap().is_none(), "it waits for the drain");
    let second = Instant::now();
    stack.signal(Signal::SIGINT);
    assert_eq!(stack.wait().code(), Some(130));
    assert!(second.elapsed() < Duration::from_secs(20));
    assert_all_ended(&records);
}

#[test]
fn a_second_stack_says_where_the_first_one_is() {
    let bench = Bench::new();
    let _stack = bench.start();
    for arguments in [&[][..], &["--detach"], &["--reset", "--yes"]] {
        let second = bench.output(arguments);
        assert_eq!(second.status.code(), Some(2));
        let said = text(&second);
        assert!(
            said.contains(&format!("http://127.0.0.1:{}", bench.ports[0])) && said.contains("--stop"),
            "{said}"
        );
    }
}

#[test]
fn a_part_that_dies_ends_the_stack_with_its_exit_code() {
    let bench = Bench::new();
    let mut command = bench.with_stub(&[]);
    command.env("STUB_DIE", "worker:7");
    let mut stack = Foreground::spawn(command);
    stack.wait_for("Stop: Ctrl-C");
    let records = bench.records();
    assert_eq!(stack.wait().code(), Some(7));
    assert!(stack.text().contains("worker ended by itself (exit status: 7)"), "{}", stack.text());
    assert!(bench.events().contains(&"api drained".to_owned()));
    assert_all_ended(&records);
}

#[test]
fn a_server_that_dies_ends_the_stack() {
    let bench = Bench::new();
    let mut stack = bench.start();
    let records = bench.records();
    // Not Postgres: killed and never started again it would leave its shared memory on the machine.
    records[1].id.signal(Signal::SIGKILL);
    assert_eq!(stack.wait().code(), Some(137));
    assert!(stack.text().contains("redis ended by itself"), "{}", stack.text());
    assert_all_ended(&records);
}

#[test]
fn a_failed_migration_is_shown_and_leaves_nothing_running() {
    let bench = Bench::new();
    let mut command = bench.with_stub(&[]);
    command.env("STUB_FAIL", "migrate");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("this is why") && said.contains("`ballast migrate up` failed"), "{said}");
    assert!(!bench.state_file().exists());
}

#[test]
fn a_detached_stack_can_be_asked_and_stopped() {
    let bench = Bench::new();
    assert_eq!(bench.output(&["--env"]).status.code(), Some(2));
    let started = bench.with_stub(&["--detach"]).output().unwrap();
    assert_eq!(started.status.code(), Some(0), "{}", text(&started));
    assert!(text(&started).contains("curl -N"), "{}", text(&started));
    let records = bench.records();
    assert!(records.iter().all(|record| record.id.is_alive()));

    let env = text(&bench.output(&["--env"]));
    let names: Vec<&str> =
        env.lines().map(|line| line.strip_prefix("export ").unwrap().split_once('=').unwrap().0).collect();
    assert_eq!(
        names.join(" "),
        "API_URL ADMIN_URL WORKER_ADMIN_URL ENGINE_URL DATABASE_URL REDIS_URL DEMO_EMAIL DEMO_PASSWORD DEMO_API_KEY"
    );
    assert!(env.contains("DEMO_PASSWORD='demo password'"), "{env}");
    assert!(text(&bench.output(&["--status"])).contains("the stack is ready"));
    let log = std::fs::read_to_string(bench.dir.path().join("stack/logs/api.log")).unwrap();
    assert!(log.contains("api listens"), "{log}");

    let stopped = bench.output(&["--stop"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", text(&stopped));
    assert_all_ended(&records);
    assert!(bench.events().contains(&"worker drained".to_owned()));
    assert!(text(&bench.output(&["--stop"])).contains("no stack is running"));
}

#[test]
fn a_detached_stack_that_cannot_start_says_why() {
    let bench = Bench::new();
    let mut command = bench.with_stub(&["--detach"]);
    command.env("STUB_FAIL", "worker");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(said.contains("worker ended while it was starting") && said.contains("this is why"), "{said}");
}

#[test]
fn what_a_killed_stack_leaves_is_ended_by_stop() {
    let bench = Bench::new();
    let mut stack = bench.start();
    let left = bench.records();
    stack.signal(Signal::SIGKILL);
    stack.wait();
    assert!(left.iter().any(|record| record.id.is_alive()), "the test tests something");
    assert_eq!(bench.output(&["--env"]).status.code(), Some(2), "a killed stack is no running stack");
    let stopped = bench.output(&["--stop"]);
    assert_eq!(stopped.status.code(), Some(0));
    assert!(text(&stopped).contains("left by a stack that was killed"), "{}", text(&stopped));
    assert_all_ended(&left);
}

#[test]
fn what_a_killed_stack_leaves_is_ended_by_the_next_one_which_keeps_the_data() {
    let bench = Bench::new();
    let mut stack = bench.start();
    let left = bench.records();
    stack.signal(Signal::SIGKILL);
    stack.wait();
    let mut stack = bench.start();
    assert_all_ended(&left);
    assert!(!stack.text().contains("creating a Postgres"), "{}", stack.text());
    stack.signal(Signal::SIGINT);
    stack.wait();
}

#[test]
fn named_services_are_used_and_not_started() {
    let bench = Bench::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let mut command = bench.with_stub(&[]);
    command
        .env("DATABASE_URL", format!("postgres://{address}/mine"))
        .env("REDIS_URL", format!("redis://{address}"))
        .env("ENGINE_URL", "http://engine.example/v1");
    let mut stack = Foreground::spawn(command);
    stack.wait_for("Stop: Ctrl-C");
    let names: Vec<String> = bench.records().into_iter().map(|record| record.name).collect();
    assert_eq!(names, ["api", "worker"]);
    let env = text(&bench.output(&["--env"]));
    assert!(env.contains(&format!("DATABASE_URL='postgres://{address}/mine'")), "{env}");
    assert!(env.contains("ENGINE_URL='http://engine.example/v1'"), "{env}");
    stack.signal(Signal::SIGINT);
    assert_eq!(stack.wait().code(), Some(0));
}

#[test]
fn taken_ports_are_replaced_and_named() {
    let bench = Bench::new();
    let taken = TcpListener::bind(("127.0.0.1", bench.ports[0])).unwrap();
    let stack = bench.start();
    let said = format!("port {} is taken: the API uses", taken.local_addr().unwrap().port());
    assert!(stack.text().contains(&said), "{}", stack.text());
}

#[test]
fn reset_deletes_the_data_only_after_a_yes() {
    let bench = Bench::new();
    let mut stack = bench.start();
    stack.signal(Signal::SIGINT);
    stack.wait();
    let data = bench.dir.path().join("stack/postgres/data");
    let refused = bench.output(&["--reset"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(data.exists());
    assert_eq!(bench.output(&["--reset", "--yes"]).status.code(), Some(0));
    assert!(!data.exists());
}
