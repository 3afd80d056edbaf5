//! `cargo stack` as a child process, in a directory of its own, with the stub in place of the program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use devstack::Record;
use devstack::ports::free_port;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Generous: the machine may be busy with the other tests.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) ports: [u16; 3],
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        let ports = [(); 3].map(|()| free_port(None).unwrap());
        Self { dir, ports }
    }

    /// `cargo stack` with these arguments; servers are real, our own program is the stub.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_xtask")), arguments)
    }

    pub(crate) fn command_of(&self, xtask: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(xtask);
        command.arg("stack").args(arguments).env("DEVSTACK_DIR", self.dir.path()).stdin(Stdio::null());
        for name in ["DATABASE_URL", "REDIS_URL", "ENGINE_URL", "APP_ENV", "LOG_FORMAT"] {
            command.env_remove(name);
        }
        for (name, port) in ["PORT", "ADMIN_PORT", "WORKER_PORT"].iter().zip(self.ports) {
            command.env(name, port.to_string());
        }
        command.env("STUB_EVENTS", self.dir.path().join("events"));
        command
    }

    pub(crate) fn with_stub(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.arg("--binary").arg(stub());
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// A stack in the foreground, up to the point where it is ready.
    pub(crate) fn start(&self) -> Foreground {
        let mut stack = Foreground::spawn(self.with_stub(&[]));
        stack.wait_for("Stop: Ctrl-C");
        stack
    }

    pub(crate) fn events(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("events")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }

    pub(crate) fn state_file(&self) -> PathBuf {
        self.dir.path().join("stack/state")
    }

    /// The processes that a running stack has written down.
    pub(crate) fn records(&self) -> Vec<Record> {
        let text = fs::read_to_string(self.state_file()).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("process="))
            .map(|record| record.parse().unwrap())
            .collect()
    }
}

/// Whatever a failed test leaves running is ended.
impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.command(&["--stop"]).output();
    }
}

pub(crate) fn stub() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_stub_ballast"))
}

pub(crate) struct Foreground {
    pub(crate) child: Child,
    lines: Receiver<String>,
    pub(crate) seen: Vec<String>,
}

impl Foreground {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let other = sender.clone();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        std::thread::spawn(move || {
            BufReader::new(err).lines().map_while(Result::ok).try_for_each(|l| other.send(l))
        });
        Self { child, lines, seen: Vec::new() }
    }

    pub(crate) fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line =
                self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no `{text}` in:\n{}", self.text()));
            self.seen.push(line);
            if self.seen.last().unwrap().contains(text) {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "still running:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.seen.push(line);
        }
        self.child.wait().unwrap()
    }

    pub(crate) fn text(&self) -> String {
        self.seen.join("\n")
    }
}

pub(crate) fn assert_all_ended(records: &[Record]) {
    for record in records {
        assert!(!record.id.is_alive(), "{record} still runs");
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
