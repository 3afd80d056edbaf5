//! One Postgres and one Redis for all tests of a checkout, so that a plain `cargo test` works.
//!
//! The first test process starts them, later ones find them, and a small shell loop ends them when no test has shown up
//! for five minutes. Everything is throw-away. The files are in `.data/test`, not in `target`: `cargo clean` must not
//! delete the data of a running server.
//!
//! The hand-over is safe without the loop taking the lock: a test process first marks activity, then reads the state
//! file; the loop first moves the state file away, then looks at the activity once more and puts the file back if there
//! was any. Whichever comes second sees the other.

use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::project::Project;
use crate::service::{Record, Services, Spec};
use crate::{Install, Lifetime, Lock, System, files};

/// How often a running test process shows that it is there.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// Addresses of the shared servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestServices {
    /// Postgres: a role that may create databases.
    pub database_url: String,
    /// Redis.
    pub redis_url: String,
}

/// How long the servers stay without tests, and how often that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Idle {
    /// They stop after this time without activity.
    pub after: Duration,
    /// Time between two looks.
    pub every: Duration,
}

impl Default for Idle {
    fn default() -> Self {
        Self { after: Duration::from_mins(5), every: Duration::from_secs(10) }
    }
}

/// The shared servers of this checkout, started if need be.
pub fn test_services(project: &Project) -> Result<TestServices> {
    static HEART: Once = Once::new();
    let dir = project.data_dir()?.join("test");
    let services = services_in(&dir, &project.id(), Idle::default())?;
    HEART.call_once(|| {
        // Lives as long as the test process; a long test keeps the servers up.
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(HEARTBEAT);
                touch(&dir);
            }
        });
    });
    Ok(services)
}

/// [`test_services`] in a directory of its own.
pub fn services_in(dir: &Path, id: &str, idle: Idle) -> Result<TestServices> {
    files::ensure_dir(dir, 0o755, None)?;
    let lock = Lock::acquire(&dir.join("lock"))?;
    touch(dir);
    if let Some(state) = State::read(dir) {
        if state.records.iter().all(|record| record.id.is_alive()) {
            return Ok(state.services);
        }
        for record in &state.records {
            record.clean_up(Duration::from_secs(5));
        }
        let _ = fs::remove_dir_all(dir.join(&state.run));
    }
    let state = State::boot(dir, id)?;
    supervise(dir, &state, idle)?;
    drop(lock);
    Ok(state.services)
}

fn touch(dir: &Path) {
    let path = dir.join("activity");
    // Failing to say so costs at most a restart of the servers.
    let _ = File::options()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|file| file.set_modified(SystemTime::now()));
}

struct State {
    run: String,
    services: TestServices,
    records: Vec<Record>,
}

impl State {
    fn path(dir: &Path) -> PathBuf {
        dir.join("current")
    }

    fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(Self::path(dir)).ok()?;
        let value = |key: &str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(ToOwned::to_owned)
        };
        let services = TestServices { database_url: value("database_url")?, redis_url: value("redis_url")? };
        let records = ["postgres", "redis"].iter().filter_map(|name| value(name)?.parse().ok()).collect();
        Some(Self { run: value("run")?, services, records })
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let TestServices { database_url, redis_url } = &self.services;
        let mut text = format!("run={}\ndatabase_url={database_url}\nredis_url={redis_url}\n", self.run);
        for record in &self.records {
            writeln!(text, "{}={record}", record.name).expect("writing to a String cannot fail");
        }
        files::write_atomic(&Self::path(dir), &text)
    }

    fn boot(dir: &Path, id: &str) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = format!("run-{}-{}", std::process::id(), now.as_millis());
        // In a test nobody watches the terminal: root installs what is missing, others are told.
        let system = System { terminal: false, ..System::current() };
        let spec = Spec {
            dir: dir.join(&run),
            id: format!("{id}-test"),
            lifetime: Lifetime::Throwaway,
            install: Install::Ask,
            system,
            database_url: None,
            redis_url: None,
            say: &|line| eprintln!("test services: {line}"),
            cancelled: &|| false,
        };
        let started = Services::start(&spec)?;
        let records =
            [&started.postgres, &started.redis].into_iter().filter_map(crate::Service::record).collect();
        let services =
            TestServices { database_url: started.postgres.url.clone(), redis_url: started.redis.url.clone() };
        let state = Self { run, services, records };
        state.write(dir)?;
        started.postgres.release();
        started.redis.release();
        Ok(state)
    }
}

/// Ends the servers when they are idle or one of them has died. A shell loop, because no program of ours is around to do
/// it: test binaries come and go.
const SUPERVISOR: &str = r#"
dir=$1 run=$2 after=$3 every=$4 postgres=$5 redis=$6
seen="$dir/$run/seen" idle=0
touch "$seen"
while kill -0 "$postgres" 2>/dev/null && kill -0 "$redis" 2>/dev/null; do
  sleep "$every"
  idle=$((idle + every))
  if [ "$dir/activity" -nt "$seen" ]; then touch "$seen"; idle=0; fi
  [ "$idle" -ge "$after" ] || continue
  grep -qx "run=$run" "$dir/current" 2>/dev/null && mv "$dir/current" "$dir/$run/current"
  [ "$dir/activity" -nt "$seen" ] || break
  ln "$dir/$run/current" "$dir/current" 2>/dev/null
  rm -f "$dir/$run/current"
done
kill -INT "$postgres" 2>/dev/null
kill -TERM "$redis" 2>/dev/null
left=20
while [ "$left" -gt 0 ] && { kill -0 "$postgres" 2>/dev/null || kill -0 "$redis" 2>/dev/null; }; do
  sleep 1
  left=$((left - 1))
done
kill -KILL "$postgres" "$redis" 2>/dev/null
rm -rf "${dir:?}/${run:?}"
"#;

fn supervise(dir: &Path, state: &State, idle: Idle) -> Result<()> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SUPERVISOR, "test-services"]).arg(dir).arg(&state.run);
    command.arg(idle.after.as_secs().to_string()).arg(idle.every.as_secs().max(1).to_string());
    for record in &state.records {
        command.arg(record.id.pid.to_string());
    }
    // Detached from the terminal and from this process: it outlives the test that happened to come first.
    command.process_group(0).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start the supervisor of the test services")?;
    Ok(())
}
