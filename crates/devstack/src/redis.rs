//! A private Redis or Valkey. It holds only what may be lost, so nothing is written to disk.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::process::{ProcessId, output_within};
use crate::service::{Handle, Service, Spec};
use crate::system::{System, server_account, server_command};
use crate::{Lifetime, MIN_REDIS, files, ports};

const READY_TIMEOUT: Duration = Duration::from_secs(20);
const ATTEMPTS: u32 = 5;

/// The server program, or why there is none.
pub(crate) fn find(system: &System) -> Result<PathBuf, String> {
    let mut too_old = None;
    for name in ["redis-server", "valkey-server"] {
        let Some(program) = system.program(name) else { continue };
        match version(&program) {
            Some(version) if version >= MIN_REDIS => return Ok(program),
            Some((major, minor)) => {
                let (wanted, least) = MIN_REDIS;
                too_old = Some(format!(
                    "Redis {major}.{minor} in {} is too old: {wanted}.{least} or newer is needed",
                    program.display()
                ));
            }
            None => {}
        }
    }
    Err(too_old.unwrap_or_else(|| "no redis-server or valkey-server (looked on PATH, Homebrew)".to_owned()))
}

fn version(program: &Path) -> Option<(u32, u32)> {
    let out = output_within(Command::new(program).arg("--version"), Duration::from_secs(10)).ok()?;
    parse_version(&String::from_utf8_lossy(&out.stdout))
}

/// `Redis server v=7.0.15 sha=...` -> (7, 0); Valkey says the same with its own name.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("v=")?.1.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Starts it in `<spec.dir>/redis`.
pub(crate) fn start(spec: &Spec<'_>, program: &Path) -> Result<Service> {
    let account = server_account()?;
    let home = spec.dir.join("redis");
    files::ensure_dir(&home, 0o700, account.as_ref())?;
    let password = files::password(&home.join("password"), account.as_ref())?;
    let log_path = home.join("redis.log");
    let port_file = home.join("port");
    let mut preferred = fs::read_to_string(&port_file).ok().and_then(|text| text.trim().parse().ok());
    for _ in 0..ATTEMPTS {
        let port = ports::free_port(preferred.take())?;
        // A file, not arguments: those of a process can be read by every user of the machine.
        let settings = format!(
            "bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {}\nsave \"\"\nappendonly no\ndaemonize no\n",
            home.display()
        );
        let config = home.join("redis.conf");
        files::write_private(&config, &settings, account.as_ref())?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .context("cannot write the Redis log")?;
        let mut command = server_command(program, account.as_ref(), &home);
        command
            .arg(&config)
            .process_group(0)
            .stdout(log.try_clone().context("cannot write the Redis log")?)
            .stderr(log);
        let mut child = command.spawn().context("cannot start redis-server")?;
        let pid = child.id().cast_signed();
        let deadline = Instant::now() + READY_TIMEOUT;
        while child.try_wait().context("cannot wait for redis-server")?.is_none() {
            if answers(port, &password)
                && let Some(id) = ProcessId::of(pid)
            {
                let _ = fs::write(&port_file, port.to_string());
                let remove = (spec.lifetime == Lifetime::Throwaway).then(|| home.clone());
                let stop = vec![(Signal::SIGTERM, Duration::from_secs(10))];
                let handle = Handle::Process { child, id, stop, remove };
                let mut service = Service::new("redis", format!("Redis from {}", program.display()), handle);
                service.log = Some(log_path);
                return Ok(service.at(format!("redis://:{password}@127.0.0.1:{port}/0"), port));
            }
            if Instant::now() > deadline || (spec.cancelled)() {
                let _ = child.kill();
                let _ = child.wait();
                bail!("Redis was stopped before it was ready (see {})", log_path.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if !files::tail(&log_path, 0, 12).contains("Address already in use") {
            break;
        }
    }
    bail!("Redis did not start; the end of {}:\n{}", log_path.display(), files::tail(&log_path, 0, 12))
}

/// Whether our server answers there: someone else's would not know the password.
fn answers(port: u16, password: &str) -> bool {
    let talk = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(format!("AUTH {password}\r\nPING\r\nQUIT\r\n").as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    };
    talk().is_ok_and(|reply| reply.starts_with("+OK\r\n+PONG"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_redis_and_valkey_say() {
        assert_eq!(parse_version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc"), Some((7, 0)));
        assert_eq!(parse_version("Valkey server v=8.1.3 sha=0"), Some((8, 1)));
        assert_eq!(parse_version("something else"), None);
    }
}
