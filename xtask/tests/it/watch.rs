//! `cargo stack --watch`, in a project of its own with a cargo that only pretends to build.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::running::{Bench, Foreground, stub};

/// The project's source file, and the file whose presence makes builds fail.
struct Pretend {
    source: PathBuf,
    broken: PathBuf,
}

fn start(bench: &Bench) -> (Pretend, Foreground) {
    let dir = bench.dir.path();
    let (project, bin) = (dir.join("project"), dir.join("bin"));
    let (source, broken) = (project.join("crates/a/lib.rs"), dir.join("broken"));
    fs::create_dir_all(source.parent().unwrap()).unwrap();
    fs::create_dir_all(&bin).unwrap();
    fs::write(project.join("Cargo.lock"), "").unwrap();
    fs::write(&source, "one").unwrap();
    fs::copy(env!("CARGO_BIN_EXE_xtask"), bin.join("xtask")).unwrap();
    fs::copy(stub(), bin.join("ballast")).unwrap();
    let cargo = dir.join("cargo");
    let (broken_path, program) = (broken.display(), bin.join("ballast"));
    let script = format!("#!/bin/sh\n[ ! -e {broken_path} ] || exit 101\ntouch {}\n", program.display());
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();

    let mut command: Command = bench.command_of(&bin.join("xtask"), &["--watch"]);
    command.current_dir(&project).env("CARGO", &cargo);
    let mut stack = Foreground::spawn(command);
    stack.wait_for("watching crates/");
    (Pretend { source, broken }, stack)
}

fn process(bench: &Bench, name: &str) -> i32 {
    bench.records().iter().find(|record| record.name == name).unwrap().id.pid
}

fn change(source: &Path, text: &str) {
    fs::write(source, text).unwrap();
}

#[test]
fn a_change_restarts_api_and_worker_and_nothing_else() {
    let bench = Bench::new();
    let (pretend, mut stack) = start(&bench);
    let before = ["api", "worker", "engine", "postgres"].map(|name| process(&bench, name));
    change(&pretend.source, "a second version");
    stack.wait_for("ready again");
    let after = ["api", "worker", "engine", "postgres"].map(|name| process(&bench, name));
    assert!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    assert_eq!(before[2..], after[2..]);
    let events = bench.events();
    assert_eq!(events.iter().filter(|event| *event == "migrate started").count(), 2, "{events:?}");
    assert!(events.contains(&"api drained".to_owned()), "{events:?}");
    stack.signal(Signal::SIGINT);
    assert_eq!(stack.wait().code(), Some(0));
}

#[test]
fn a_failed_build_leaves_the_previous_version_running_until_it_is_mended() {
    let bench = Bench::new();
    let (pretend, mut stack) = start(&bench);
    let before = process(&bench, "api");
    fs::write(&pretend.broken, "").unwrap();
    change(&pretend.source, "does not compile");
    stack.wait_for("the build failed: the previous version keeps running");
    assert_eq!(process(&bench, "api"), before);
    fs::remove_file(&pretend.broken).unwrap();
    change(&pretend.source, "compiles again, says its author");
    stack.wait_for("ready again");
    assert_ne!(process(&bench, "api"), before);
    stack.signal(Signal::SIGINT);
    assert_eq!(stack.wait().code(), Some(0));
}

#[test]
fn a_part_that_dies_while_watching_waits_for_the_next_change() {
    let bench = Bench::new();
    let (pretend, mut stack) = start(&bench);
    let worker = bench.records().into_iter().find(|record| record.name == "worker").unwrap();
    worker.id.signal(Signal::SIGKILL);
    stack.wait_for("starts again after the next change");
    change(&pretend.source, "with the bug fixed");
    stack.wait_for("ready again");
    assert_ne!(process(&bench, "worker"), worker.id.pid);
    stack.signal(Signal::SIGINT);
    assert_eq!(stack.wait().code(), Some(0));
}
