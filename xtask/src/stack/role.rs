//! One process of ours: engine-sim, API or worker.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use devstack::Record;
use devstack::process::ProcessId;
use nix::sys::signal::Signal;

use crate::interrupts;
use crate::ui::Ui;

/// A process and the threads that copy its output.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    id: ProcessId,
    child: Child,
    readers: Vec<JoinHandle<()>>,
}

impl Role {
    /// Starts it in a process group of its own: Ctrl-C on the terminal reaches only us, and we decide the order.
    /// Output goes to `<logs>/<name>.log`, or with a prefix to the terminal.
    pub(crate) fn start(
        name: &'static str,
        port: u16,
        color: usize,
        mut command: Command,
        logs: Option<&Path>,
        ui: &Ui,
    ) -> Result<Self> {
        command.process_group(0).stdin(Stdio::null());
        if let Some(dir) = logs {
            let path = dir.join(format!("{name}.log"));
            let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
            command.stdout(file.try_clone().context("cannot share a file")?).stderr(file);
        } else {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            readers.push(copy_lines(out, name, color, ui.clone()));
        }
        if let Some(err) = child.stderr.take() {
            readers.push(copy_lines(err, name, color, ui.clone()));
        }
        let id = ProcessId::of_child(&child);
        Ok(Self { name, port, id, child, readers })
    }

    pub(crate) fn record(&self) -> Record {
        Record { name: self.name.to_owned(), id: self.id.clone(), container: None }
    }

    /// Its exit status once it has ended; its last lines have been shown then.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten()?;
        self.drain_output();
        Some(status)
    }

    pub(crate) fn ask_to_stop(&self) {
        self.id.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended; kills it when `patience` is over or the person at the terminal has lost theirs.
    pub(crate) fn wait(mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while self.id.is_alive() && Instant::now() < deadline && !interrupts::killing() {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.id.signal_group(Signal::SIGKILL);
        let status = self.child.wait().ok();
        self.drain_output();
        status
    }

    fn drain_output(&mut self) {
        // A grandchild may hold the pipe open: no waiting for ever.
        let deadline = Instant::now() + Duration::from_millis(500);
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.id.signal_group(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn copy_lines(from: impl Read + Send + 'static, name: &'static str, color: usize, ui: Ui) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        // Bytes, not strings: a child may write anything.
        while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            ui.log(name, color, String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
            line.clear();
        }
    })
}
