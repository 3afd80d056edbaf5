//! A private Postgres cluster.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::process::{ProcessId, output_within};
use crate::service::{Handle, Service, Spec};
use crate::system::{Account, System, can_enter, is_executable, server_account, server_command};
use crate::{Lifetime, MIN_POSTGRES, Unavailable, files, ports};

/// Crash recovery of a big database takes its time.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long memory of a killed server may be in use by its last backends.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(15);

/// The server programs of one Postgres version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binaries {
    dir: PathBuf,
    major: u32,
}

/// All usable versions on this machine, newest first, or why there is none.
pub(crate) fn find(system: &System) -> Result<Vec<Binaries>, String> {
    let mut found: Vec<Binaries> = Vec::new();
    let mut too_old: Vec<String> = Vec::new();
    for dir in system.program_dirs() {
        // A directory counts only as a whole: a lone `postgres` on PATH may be a wrapper of something else.
        if !["postgres", "initdb", "pg_ctl"].iter().all(|name| is_executable(&dir.join(name))) {
            continue;
        }
        let real =
            dir.join("postgres").canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
        let dir = real.filter(|real| is_executable(&real.join("initdb"))).unwrap_or(dir);
        let Some(major) = version(&dir.join("postgres")) else { continue };
        let binaries = Binaries { dir, major };
        if major < MIN_POSTGRES {
            too_old.push(format!("{} in {}", major, binaries.dir.display()));
        } else if !found.contains(&binaries) {
            found.push(binaries);
        }
    }
    found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
    if !found.is_empty() {
        return Ok(found);
    }
    if too_old.is_empty() {
        return Err(
            "no Postgres server programs (looked on PATH, in /usr/lib/postgresql, Homebrew)".to_owned()
        );
    }
    Err(format!("Postgres {} is too old: {MIN_POSTGRES} or newer is needed", too_old.join(", ")))
}

fn version(program: &Path) -> Option<u32> {
    let out = output_within(Command::new(program).arg("--version"), Duration::from_secs(10)).ok()?;
    parse_version(&String::from_utf8_lossy(&out.stdout))
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` -> 15; `17beta1` -> 17.
fn parse_version(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL)")?.1.trim_start();
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Server settings beyond the defaults.
pub(crate) fn settings(lifetime: Lifetime) -> &'static [&'static str] {
    match lifetime {
        Lifetime::Keep => &["max_connections=200", "timezone=UTC"],
        // Without the waits for the disk a test's CREATE DATABASE takes milliseconds. Losing the data is fine.
        Lifetime::Throwaway => &[
            "max_connections=300",
            "timezone=UTC",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "autovacuum_naptime=1h",
        ],
    }
}

/// Starts the cluster in `<spec.dir>/postgres`, made on first use.
pub(crate) fn start(spec: &Spec<'_>, available: Vec<Binaries>) -> Result<Service> {
    let account = server_account()?;
    let home = spec.dir.join("postgres");
    files::ensure_dir(&home, 0o700, account.as_ref())?;
    if let Some(account) = &account
        && !can_enter(&home, account)
    {
        let text = format!(
            "Postgres runs as `{}` here (it refuses root), and that user cannot reach {}\n  \
             - name another directory: DEVSTACK_DIR=/some/reachable/directory, or\n  - run this command as an ordinary user",
            account.name,
            home.display()
        );
        return Err(Unavailable(text).into());
    }
    let binaries = choose(&home.join("data"), available)?;
    let cluster = Cluster { home, account, binaries, lifetime: spec.lifetime };
    let password = files::password(&cluster.home.join("password"), cluster.account.as_ref())?;
    cluster.take_over()?;
    if !cluster.data().join("PG_VERSION").exists() {
        (spec.say)(&format!(
            "creating a Postgres {} cluster in {}",
            cluster.binaries.major,
            cluster.data().display()
        ));
        cluster.init()?;
    }
    cluster.run(spec, &password)
}

/// The newest version, or the one that wrote the data that is already there.
fn choose(data: &Path, available: Vec<Binaries>) -> Result<Binaries> {
    let Ok(written) = fs::read_to_string(data.join("PG_VERSION")) else {
        return available.into_iter().next().context("a version was found before");
    };
    let written = written.trim();
    let versions = available.iter().map(|b| b.major.to_string()).collect::<Vec<_>>().join(", ");
    if let Some(binaries) = available.into_iter().find(|binaries| binaries.major.to_string() == written) {
        return Ok(binaries);
    }
    let text = format!(
        "the data in {} was written by Postgres {written}; this machine has {versions}\n  \
         - install Postgres {written} again, or\n  - start afresh, without that data: cargo stack --reset, or\n  \
         - keep it and use another directory: DEVSTACK_DIR=/some/directory",
        data.display()
    );
    Err(Unavailable(text).into())
}

struct Cluster {
    home: PathBuf,
    account: Option<Account>,
    binaries: Binaries,
    lifetime: Lifetime,
}

impl Cluster {
    fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn log(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    fn command(&self, program: &str) -> Command {
        server_command(&self.binaries.dir.join(program), self.account.as_ref(), &self.home)
    }

    /// Ends a server that a killed `cargo stack` left on this directory, and removes the pid file of a dead one: the
    /// number in it may belong to another process by now, and Postgres would refuse to start.
    fn take_over(&self) -> Result<()> {
        let pid_file = self.data().join("postmaster.pid");
        let Ok(text) = fs::read_to_string(&pid_file) else { return Ok(()) };
        let pid: i32 = text.lines().next().unwrap_or_default().trim().parse().unwrap_or(0);
        if let Some(id) = ProcessId::of(pid)
            && self.serves_our_data(pid)
        {
            id.stop(&[(Signal::SIGINT, Duration::from_secs(30)), (Signal::SIGQUIT, Duration::from_secs(5))]);
        }
        match fs::remove_file(&pid_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove the stale {}", pid_file.display()))
            }
            _ => Ok(()),
        }
    }

    fn serves_our_data(&self, pid: i32) -> bool {
        let mut command = Command::new("ps");
        let out = output_within(
            command.args(["-ww", "-o", "command=", "-p", &pid.to_string()]),
            Duration::from_secs(5),
        );
        // Without `ps` (small containers have none) /proc tells the same.
        let shown = match out {
            Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).into_owned(),
            _ => fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
        };
        shown.contains(&self.data().display().to_string())
    }

    /// Makes the cluster aside and moves it into place: an interrupted attempt leaves nothing that looks finished.
    fn init(&self) -> Result<()> {
        let partial = self.home.join("data.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        let _ = fs::remove_dir_all(self.data());
        // Lower-casing and sorting of non-ASCII text as on a server; where the C library lacks the locale, plain C.
        let locale = if cfg!(target_os = "macos") { "en_US.UTF-8" } else { "C.UTF-8" };
        let mut failure = String::new();
        for locale in [locale, "C"] {
            let mut command = self.command("initdb");
            command.arg("--pgdata").arg(&partial).arg("--pwfile").arg(self.home.join("password")).args([
                "--username=ballast",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                &format!("--locale={locale}"),
            ]);
            if self.lifetime == Lifetime::Throwaway {
                command.arg("--no-sync");
            }
            let out = output_within(&mut command, Duration::from_secs(120))?;
            if out.status.success() {
                self.create_database(&partial)?;
                return fs::rename(&partial, self.data()).context("cannot move the new cluster into place");
            }
            String::from_utf8_lossy(&out.stderr).trim().clone_into(&mut failure);
            if !failure.contains("locale") {
                break;
            }
        }
        if failure.contains("Permission denied")
            || failure.contains("No space left")
            || failure.contains("Read-only")
        {
            let text = format!(
                "initdb cannot write to {}\n{failure}\n  - name another directory: DEVSTACK_DIR=/some/writable/directory",
                self.home.display()
            );
            return Err(Unavailable(text).into());
        }
        bail!("initdb failed: {failure}")
    }

    /// In single-user mode: needs neither `psql` nor a running server.
    fn create_database(&self, data: &Path) -> Result<()> {
        let mut child = self
            .command("postgres")
            .args(["--single", "-D"])
            .arg(data)
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start postgres")?;
        let mut input = child.stdin.take().context("its input is a pipe")?;
        input.write_all(b"CREATE DATABASE \"ballast\"\n").context("cannot talk to postgres --single")?;
        drop(input);
        let out = child.wait_with_output().context("cannot wait for postgres --single")?;
        let said = String::from_utf8_lossy(&out.stderr);
        if !out.status.success() || said.contains("ERROR") || said.contains("FATAL") {
            bail!("cannot create the database: {}", said.trim());
        }
        Ok(())
    }

    /// Starts the server; the port of last time is preferred, so that a database tool's settings stay valid.
    fn run(&self, spec: &Spec<'_>, password: &str) -> Result<Service> {
        let port_file = self.home.join("port");
        let mut preferred = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
        let give_up = Instant::now() + LEFTOVER_TIMEOUT;
        loop {
            let port = ports::free_port(preferred.take())?;
            let offset = fs::metadata(self.log()).map_or(0, |meta| meta.len());
            let child = self.spawn(port)?;
            if let Some((child, id)) = self.wait_ready(child, spec)? {
                // Only a convenience: without it the next start picks another port.
                let _ = fs::write(&port_file, port.to_string());
                return Ok(self.service(child, id, port, password));
            }
            let said = files::tail(&self.log(), offset, 12);
            let lost_port = said.contains("could not create any TCP/IP sockets");
            let leftover =
                said.contains("is still in use") || said.contains("another server might be running");
            if !(lost_port || leftover) || Instant::now() > give_up {
                bail!("Postgres did not start; the end of {}:\n{said}", self.log().display());
            }
            std::thread::sleep(Duration::from_millis(if leftover { 500 } else { 20 }));
        }
    }

    fn spawn(&self, port: u16) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .context("cannot write the Postgres log")?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            &format!("port={port}"),
            // No socket file: its path may be too long for the system, and the TCP port is enough.
            "-c",
            "unix_socket_directories=",
        ]);
        for setting in settings(self.lifetime) {
            command.args(["-c", setting]);
        }
        // A group of its own: Ctrl-C on the terminal must not reach it before its clients have ended.
        command
            .process_group(0)
            .stdout(log.try_clone().context("cannot write the Postgres log")?)
            .stderr(log);
        command.spawn().context("cannot start postgres")
    }

    /// Waits for the word `ready` in the pid file, as `pg_ctl -w` does. `None`: it ended by itself.
    fn wait_ready(&self, mut child: Child, spec: &Spec<'_>) -> Result<Option<(Child, ProcessId)>> {
        let started = Instant::now();
        let pid = child.id().cast_signed();
        loop {
            if child.try_wait().context("cannot wait for postgres")?.is_some() {
                return Ok(None);
            }
            let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            let mut lines = text.lines();
            let ours = lines.next().is_some_and(|line| line.trim() == pid.to_string());
            if ours && lines.nth(6).is_some_and(|status| status.trim() == "ready") {
                return Ok(ProcessId::of(pid).map(|id| (child, id)));
            }
            if (spec.cancelled)() || started.elapsed() > READY_TIMEOUT {
                if let Some(id) = ProcessId::of(pid) {
                    id.stop(&[
                        (Signal::SIGINT, Duration::from_secs(10)),
                        (Signal::SIGQUIT, Duration::from_secs(5)),
                    ]);
                }
                let _ = child.wait();
                bail!("Postgres was stopped before it was ready (see {})", self.log().display());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    fn service(&self, child: Child, id: ProcessId, port: u16, password: &str) -> Service {
        let (stop, remove) = match self.lifetime {
            Lifetime::Keep => {
                let stop = vec![
                    (Signal::SIGINT, Duration::from_secs(30)),
                    (Signal::SIGQUIT, Duration::from_secs(5)),
                ];
                (stop, None)
            }
            Lifetime::Throwaway => {
                (vec![(Signal::SIGQUIT, Duration::from_secs(10))], Some(self.home.clone()))
            }
        };
        let origin = format!("Postgres {} from {}", self.binaries.major, self.binaries.dir.display());
        let mut service = Service::new("postgres", origin, Handle::Process { child, id, stop, remove });
        service.log = Some(self.log());
        service.at(format!("postgres://ballast:{password}@127.0.0.1:{port}/ballast"), port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_postgres_says() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta2"), Some(18));
        assert_eq!(parse_version("pgbouncer 1.2"), None);
    }
}
