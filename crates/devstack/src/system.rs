//! What this machine offers: programs, accounts, a terminal.

use std::ffi::OsStr;
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, User};

use crate::Unavailable;

/// Where server programs are when they are not on PATH; `*` stands for one directory.
const SERVER_DIRS: &[&str] = &[
    "/usr/lib/postgresql/*/bin",                       // Debian, Ubuntu
    "/usr/pgsql-*/bin",                                // PostgreSQL's own RPMs
    "/opt/homebrew/opt/postgresql@*/bin",              // Homebrew, Apple silicon
    "/opt/homebrew/opt/postgresql/bin",                //
    "/usr/local/opt/postgresql@*/bin",                 // Homebrew, Intel
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin", // Homebrew on Linux
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/usr/sbin",
];

/// Where programs are looked for and whether somebody can be asked. A value, so that a test can offer less.
#[derive(Debug, Clone)]
pub struct System {
    /// Directories of PATH.
    pub path: Vec<PathBuf>,
    /// More directories, with at most one `*` each.
    pub server_dirs: Vec<String>,
    /// Whether a person sits at a terminal and can answer.
    pub terminal: bool,
}

impl System {
    /// This machine.
    pub fn current() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            path: std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect(),
            server_dirs: SERVER_DIRS.iter().map(ToString::to_string).collect(),
            terminal: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        }
    }

    /// All directories in which server programs may be, PATH first. Read anew each time: an installation adds some.
    pub(crate) fn program_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.path.clone();
        dirs.extend(self.server_dirs.iter().flat_map(|pattern| expand(pattern)));
        dirs
    }

    /// A program on PATH or in the other known directories.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        self.program_dirs().into_iter().map(|dir| dir.join(name)).find(|path| is_executable(path))
    }
}

/// Expands the one `*` of a pattern such as `/usr/lib/postgresql/*/bin` or `/opt/postgresql@*/bin`.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![PathBuf::from(pattern)] };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()))
        .map(|entry| entry.path().join(after.trim_start_matches('/')))
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

pub(crate) fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A user account that servers run as.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
}

/// As root, the account for the servers: `postgres`, otherwise `nobody`. `None`: not root, servers run as the caller.
pub(crate) fn server_account() -> Result<Option<Account>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).context("cannot read the user database")?
            && !user.uid.is_root()
        {
            return Ok(Some(Account { name: name.to_owned(), uid: user.uid, gid: user.gid }));
        }
    }
    Err(Unavailable(
        "Postgres refuses to run as root, and there is neither a user `postgres` nor `nobody` to run it as.\n  \
         - run this command as an ordinary user, or\n  - add a user: useradd --system postgres"
            .to_owned(),
    )
    .into())
}

/// Whether `account` can enter the directory. The kernel is asked, by a process of that account: mode bits alone know
/// nothing of access lists, sealed mounts and the like.
pub(crate) fn can_enter(dir: &Path, account: &Account) -> bool {
    run_as(Command::new("/bin/sh"), Some(account))
        .args([OsStr::new("-c"), OsStr::new("cd \"$1\""), OsStr::new("sh"), dir.as_os_str()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command, run as `account` (supplementary groups are dropped by `Command` itself).
pub(crate) fn run_as(mut command: Command, account: Option<&Account>) -> Command {
    if let Some(account) = account {
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    command
}

/// A server program's command: as its account, in a directory that it can read, with messages in English (they are
/// looked at) and without `PG*` variables that would redirect it to another cluster.
pub(crate) fn server_command(program: &Path, account: Option<&Account>, dir: &Path) -> Command {
    let mut command = run_as(Command::new(program), account);
    command.current_dir(dir).env("LC_ALL", "C").env("LANG", "C").stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    command
}
