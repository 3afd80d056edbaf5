//! Processes by identity, not by number alone: a recorded pid may belong to someone else by the time it is read back.

use std::fmt;
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

const POLL: Duration = Duration::from_millis(20);

/// A process that was seen running: its number and when it started. Two processes with the same number differ in the
/// second, so that cleaning up after a crash cannot hit a stranger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// Process number; also the number of its group, for processes that this crate starts.
    pub pid: i32,
    started: String,
}

impl ProcessId {
    /// The process that has this number now. `None`: there is none, or it has ended and only waits to be collected.
    pub fn of(pid: i32) -> Option<Self> {
        // A signal to 0 or less reaches whole groups of processes. 1 may be ours: in a container.
        if pid < 1 {
            return None;
        }
        seen(pid).filter(|seen| !seen.ended).map(|seen| Self { pid, started: seen.started })
    }

    /// A child of this process that has not been waited for: its number cannot be anyone else's, ended or not.
    pub fn of_child(child: &Child) -> Self {
        let pid = child.id().cast_signed();
        Self { pid, started: seen(pid).map(|seen| seen.started).unwrap_or_default() }
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id().cast_signed())
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal if this very process still runs.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end between the check and the signal; then there is nothing left to do.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Sends a signal to the whole process group that this process leads.
    pub fn signal_group(&self, signal: Signal) {
        if self.is_alive() {
            let _ = killpg(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits until the process has ended; false when it still runs after `timeout`.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Asks with each signal in turn, waits up to its time, and kills the group in the end.
    pub fn stop(&self, steps: &[(Signal, Duration)]) {
        for (signal, patience) in steps {
            self.signal(*signal);
            if self.wait_gone(*patience) {
                return;
            }
        }
        self.signal_group(Signal::SIGKILL);
        self.wait_gone(Duration::from_secs(5));
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.started)
    }
}

impl FromStr for ProcessId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (pid, started) = text.split_once('@').context("not of the form pid@start")?;
        Ok(Self { pid: pid.parse()?, started: started.to_owned() })
    }
}

struct Seen {
    /// It only waits to be collected, perhaps for ever: nobody may be there to do it.
    ended: bool,
    started: String,
}

/// Linux: boot id and start time in clock ticks.
#[cfg(target_os = "linux")]
fn seen(pid: i32) -> Option<Seen> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, spaces and parentheses included: read from its end.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X");
    let ticks = fields.nth(18)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(Seen { ended, started: format!("{}.{ticks}", boot.split('-').next().unwrap_or_default().trim()) })
}

#[cfg(not(target_os = "linux"))]
fn seen(pid: i32) -> Option<Seen> {
    let out =
        Command::new("ps").args(["-o", "stat=", "-o", "lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let (state, started) = text.trim().split_once(' ')?;
    Some(Seen { ended: state.starts_with('Z'), started: started.trim().replace(' ', "_") })
}

/// Runs a short command without input and collects what it says; an error when it takes longer than `timeout`.
pub fn output_within(command: &mut Command, timeout: Duration) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let id = child.id().cast_signed();
    let (done, finished) = std::sync::mpsc::channel();
    // The output is read aside: a full pipe would otherwise hold the command for ever.
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(out) = finished.recv_timeout(timeout) else {
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        bail!("{name} did not finish within {} s", timeout.as_secs());
    };
    out.with_context(|| format!("cannot read the output of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_process_is_recognised_after_a_round_trip() {
        let me = ProcessId::own().unwrap();
        let back: ProcessId = me.to_string().parse().unwrap();
        assert_eq!(me, back);
        assert!(back.is_alive());
    }

    #[test]
    fn another_process_with_the_same_number_is_not_signalled() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        let pid = child.id().cast_signed();
        let stranger = ProcessId { pid, started: "before.1".to_owned() };
        stranger.stop(&[(Signal::SIGTERM, Duration::ZERO)]);
        assert!(ProcessId::of(pid).unwrap().is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_counts_as_ended() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ProcessId::of(pid).is_some() {
            assert!(Instant::now() < deadline, "`true` still runs");
            std::thread::sleep(POLL);
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let err = output_within(Command::new("sleep").arg("60"), Duration::from_millis(200)).unwrap_err();
        assert!(err.to_string().contains("did not finish"), "{err}");
    }
}
