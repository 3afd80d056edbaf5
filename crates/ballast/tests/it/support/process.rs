//! The real binary as a child process.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A port that is free at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running `ballast`; killed when it goes out of scope.
pub(crate) struct Process {
    child: Child,
    output: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// The command with an environment that holds only what is given.
    pub(crate) fn command(arguments: &[&str], vars: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command.args(arguments).env_clear().envs(vars.iter().copied());
        command
    }

    pub(crate) fn start(arguments: &[&str], vars: &[(&str, &str)]) -> Self {
        Self::run(Self::command(arguments, vars))
    }

    /// With at most this many open files.
    pub(crate) fn start_with_files(files: usize, arguments: &[&str], vars: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        let script = r#"ulimit -n "$0" && exec "$@""#;
        command.args(["-c", script, &files.to_string(), env!("CARGO_BIN_EXE_ballast")]).args(arguments);
        command.env_clear().envs(vars.iter().copied());
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let output = output.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    output.lock().unwrap().push(line);
                }
            });
        }
        Self { child, output }
    }

    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().join("\n")
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A field of /proc/PID/status in KiB, such as `VmRSS`; `None` where there is no /proc.
    pub(crate) fn memory_kib(&self, field: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().nth(1)?.parse().ok())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end and returns how it ended and how long that took.
    pub(crate) async fn wait(&mut self, patience: Duration) -> (ExitStatus, Duration) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The readers need a moment for the last lines.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < patience, "still running after {patience:?}:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
