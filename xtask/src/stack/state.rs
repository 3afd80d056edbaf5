//! What a running stack writes down for other commands: lines of `key=value`, readable by its owner only.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use devstack::Record;
use devstack::process::ProcessId;

/// How far a stack has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Stopping,
}

impl Phase {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Starting, Self::Ready, Self::Stopping].into_iter().find(|phase| phase.text() == text)
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) supervisor: ProcessId,
    /// In the order in which they were started.
    pub(crate) records: Vec<Record>,
    /// What `--env` prints.
    pub(crate) exports: Vec<(String, String)>,
    /// Directory of the log files, for a detached stack.
    pub(crate) logs: Option<PathBuf>,
}

impl State {
    /// The state of a stack that this process starts.
    pub(crate) fn new(logs: Option<PathBuf>) -> Result<Self> {
        let supervisor = ProcessId::own().context("this process is not listed among the processes")?;
        Ok(Self { phase: Phase::Starting, supervisor, records: Vec::new(), exports: Vec::new(), logs })
    }

    fn path(dir: &Path) -> PathBuf {
        dir.join("state")
    }

    /// `None`: no stack has been started, or the last one has cleaned up.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(Self::path(dir)).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let pairs: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let all = |key: &str| {
            pairs.iter().filter(move |(k, _)| *k == key).map(|(_, value)| *value).collect::<Vec<_>>()
        };
        Some(Self {
            phase: Phase::parse(all("phase").first()?)?,
            supervisor: all("supervisor").first()?.parse().ok()?,
            records: all("process").iter().filter_map(|record| record.parse().ok()).collect(),
            exports: all("export")
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            logs: all("logs").first().map(PathBuf::from),
        })
    }

    fn text(&self) -> String {
        let mut lines =
            vec![format!("phase={}", self.phase.text()), format!("supervisor={}", self.supervisor)];
        lines.extend(self.records.iter().map(|record| format!("process={record}")));
        lines.extend(self.exports.iter().map(|(name, value)| format!("export={name}={value}")));
        lines.extend(self.logs.iter().map(|dir| format!("logs={}", dir.display())));
        lines.join("\n") + "\n"
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        devstack::write_atomic(&Self::path(dir), &self.text())
    }

    pub(crate) fn remove(dir: &Path) -> Result<()> {
        match fs::remove_file(Self::path(dir)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("cannot remove the state file")
            }
            _ => Ok(()),
        }
    }

    /// The value that `--env` prints under this name.
    pub(crate) fn export(&self, name: &str) -> Option<&str> {
        self.exports.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_a_round_trip() {
        let id = ProcessId::own().unwrap();
        let state = State {
            phase: Phase::Ready,
            supervisor: id.clone(),
            records: vec![
                Record { name: "redis".to_owned(), id: id.clone(), container: Some("c-1".to_owned()) },
                Record { name: "api".to_owned(), id, container: None },
            ],
            exports: vec![("DATABASE_URL".to_owned(), "postgres://u:p=w@h/d?a=b".to_owned())],
            logs: Some(PathBuf::from("/some/where")),
        };
        assert_eq!(State::parse(&state.text()), Some(state));
    }

    #[test]
    fn a_torn_state_file_counts_as_none() {
        assert_eq!(State::parse("phase=rea"), None);
    }
}
