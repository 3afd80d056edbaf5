//! `cargo stack`: the whole stack on a machine that has only Rust.
//!
//! One process supervises it: the command itself, or with `--detach` a copy of it in the background. It holds a lock for
//! as long as it lives, and writes down every process it starts before it goes on, so that after a `kill -9` the next
//! `cargo stack` (or `--stop`) finds and ends what was left.

mod detach;
mod hints;
mod ports;
mod role;
mod state;
mod supervisor;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use devstack::project::Project;
use devstack::{Install, Lock, Spec, System, Unavailable};
use nix::sys::signal::Signal;

use crate::ui::{self, Ui};
use crate::{interrupts, smoke};
use state::{Phase, State};
use supervisor::Supervisor;

/// A stack that drains may take this long to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

const EXAMPLES: &str = "\
Examples:
  cargo stack                     run in this terminal, logs included; Ctrl-C stops everything
  cargo stack --watch             rebuild and restart on every change
  cargo stack --detach            run in the background, return when it is ready
  cargo stack --try               try the running stack: log in, stream, usage, a job
  eval \"$(cargo stack --env)\"     API_URL, DATABASE_URL, DEMO_API_KEY, ... for this shell
  cargo stack --stop              stop it
  DATABASE_URL=postgres://... cargo stack     with your own Postgres; REDIS_URL and ENGINE_URL work alike
  PORT=3000 cargo stack           another port for the API; ADMIN_PORT and WORKER_PORT work alike

Data is in .data (as root, if other users cannot enter the checkout: /var/tmp/ballast-...); DEVSTACK_DIR names another directory.
Exit codes: 0 stopped in order, 2 something on this machine has to be decided first (the text says what), otherwise that of the process that died.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo stack [OPTIONS]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run in the background; return when everything is ready
    #[arg(long, group = "what")]
    detach: bool,
    /// Stop the running stack, and whatever a killed one left behind
    #[arg(long, group = "what")]
    stop: bool,
    /// Print shell exports with the addresses and the demo account of the running stack
    #[arg(long, group = "what")]
    env: bool,
    /// Say what runs and where
    #[arg(long, group = "what")]
    status: bool,
    /// Try the running stack: log in, stream a completion, find it in the usage, have a job run
    #[arg(long = "try", group = "what")]
    try_it: bool,
    /// Delete the stack's data (asks first)
    #[arg(long, group = "what")]
    reset: bool,
    /// Rebuild on changes in crates/, migrations/ and Cargo.toml, and restart API and worker
    #[arg(long, conflicts_with_all = ["stop", "env", "status", "try_it", "reset"])]
    watch: bool,
    /// Answer yes to all questions
    #[arg(short, long)]
    yes: bool,
    /// Never install anything
    #[arg(long, conflicts_with = "yes")]
    no_install: bool,
    /// Run this program instead of building the project's
    #[arg(long, value_name = "PROGRAM", conflicts_with = "watch")]
    binary: Option<PathBuf>,
    /// The background half of --detach
    #[arg(long, hide = true, group = "what")]
    supervised: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let place = Place::find()?;
    if args.env {
        return env(&place);
    }
    if args.status {
        return status(&place);
    }
    if args.try_it {
        return try_it(&place);
    }
    interrupts::listen(args.supervised)?;
    if args.stop {
        return stop(&place);
    }
    if args.reset {
        return reset(&place, args.yes);
    }
    let Some(lock) = Lock::try_acquire(&place.lock())? else {
        return Err(already_running(&place));
    };
    if args.detach {
        // The background process takes it.
        drop(lock);
        return detach::run(args, &place);
    }
    clean_up(&place, &Ui::new())?;
    Supervisor::new(args, &place).run()
}

/// Where this checkout's stack keeps its things.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    project: Project,
    dir: PathBuf,
}

impl Place {
    fn find() -> Result<Self> {
        let project = Project::find()?;
        let dir = project.data_dir()?.join("stack");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { project, dir })
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// What devstack is asked for.
    fn spec<'a>(&self, args: &Args, say: &'a dyn Fn(&str)) -> Spec<'a> {
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Spec {
            dir: self.dir.clone(),
            id: self.project.id(),
            lifetime: devstack::Lifetime::Keep,
            install: match (args.yes, args.no_install) {
                (_, true) => Install::Never,
                (true, false) => Install::Yes,
                (false, false) => Install::Ask,
            },
            system: System::current(),
            database_url: given("DATABASE_URL"),
            redis_url: given("REDIS_URL"),
            say,
            cancelled: &interrupts::stopping,
        }
    }
}

fn already_running(place: &Place) -> anyhow::Error {
    let who = match State::read(&place.dir) {
        Some(state) if state.phase == Phase::Ready => {
            format!(": {} (process {})", state.export("API_URL").unwrap_or_default(), state.supervisor.pid)
        }
        Some(state) => format!(" (process {}, {})", state.supervisor.pid, state.phase.text()),
        None => String::new(),
    };
    let text = format!(
        "a stack of this checkout is already running{who}\n  - its addresses: cargo stack --env\n  \
         - stop it: cargo stack --stop, or Ctrl-C in its terminal"
    );
    Unavailable(text).into()
}

/// Ends what a killed stack left behind. Whoever calls it holds the lock.
fn clean_up(place: &Place, ui: &Ui) -> Result<bool> {
    let Some(state) = State::read(&place.dir) else { return Ok(false) };
    let mut found = false;
    // Those that use Postgres and Redis were started after them.
    for record in state.records.iter().rev() {
        if record.id.is_alive() {
            ui.step(&format!(
                "ending {} (process {}), left by a stack that was killed",
                record.name, record.id.pid
            ));
            record.clean_up(Duration::from_secs(30));
            found = true;
        }
    }
    State::remove(&place.dir)?;
    Ok(found)
}

fn stop(place: &Place) -> Result<ExitCode> {
    let ui = Ui::new();
    let mut lock = Lock::try_acquire(&place.lock())?;
    if lock.is_none() {
        let state =
            State::read(&place.dir).context("a stack is just starting or stopping: try again in a moment")?;
        ui.step(&format!("stopping the stack (process {}); it drains first", state.supervisor.pid));
        state.supervisor.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while lock.is_none() {
            interrupts::check()?;
            if Instant::now() > deadline {
                bail!("process {} has not stopped within {} s", state.supervisor.pid, STOP_TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
            lock = Lock::try_acquire(&place.lock())?;
        }
        clean_up(place, &ui)?;
        ui.step("stopped");
    } else if clean_up(place, &ui)? {
        ui.step("stopped");
    } else {
        ui::print("no stack is running");
    }
    Ok(ExitCode::SUCCESS)
}

/// The state of a stack that is ready, or the reason why there is none.
fn running(place: &Place) -> Result<State> {
    let state = State::read(&place.dir).filter(|state| state.supervisor.is_alive());
    match state {
        Some(state) if state.phase == Phase::Ready => Ok(state),
        Some(state) => Err(Unavailable(format!(
            "the stack is not ready: {}\n  - try again in a moment",
            state.phase.text()
        ))
        .into()),
        None => {
            Err(Unavailable("no stack is running\n  - start one: cargo stack --detach".to_owned()).into())
        }
    }
}

/// The database of the running stack.
pub(crate) fn database_url() -> Result<String> {
    let state = running(&Place::find()?)?;
    Ok(state.export("DATABASE_URL").context("the stack has no DATABASE_URL")?.to_owned())
}

fn env(place: &Place) -> Result<ExitCode> {
    for (name, value) in running(place)?.exports {
        ui::print(&format!("export {name}='{}'", value.replace('\'', r"'\''")));
    }
    Ok(ExitCode::SUCCESS)
}

fn status(place: &Place) -> Result<ExitCode> {
    let state = running(place)?;
    ui::print(&format!("the stack is ready (process {})", state.supervisor.pid));
    for record in &state.records {
        let fate = if record.id.is_alive() { "runs" } else { "has ended" };
        ui::print(&format!("  {:<9} process {} {fate}", record.name, record.id.pid));
    }
    for name in ["API_URL", "ADMIN_URL", "WORKER_ADMIN_URL", "ENGINE_URL"] {
        ui::print(&format!("  {name}={}", state.export(name).unwrap_or_default()));
    }
    if let Some(logs) = &state.logs {
        ui::print(&format!("  logs in {}", logs.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn try_it(place: &Place) -> Result<ExitCode> {
    let state = running(place)?;
    smoke::run_with(|name| state.export(name).map(ToOwned::to_owned), &Ui::new())?;
    Ok(ExitCode::SUCCESS)
}

fn reset(place: &Place, yes: bool) -> Result<ExitCode> {
    let Some(_lock) = Lock::try_acquire(&place.lock())? else {
        return Err(already_running(place));
    };
    let ui = Ui::new();
    clean_up(place, &ui)?;
    if !yes {
        if !System::current().terminal {
            let text = "deleting data needs a yes\n  - cargo stack --reset --yes";
            return Err(Unavailable(text.to_owned()).into());
        }
        if !devstack::ask(&format!("Delete the database and everything else in {}?", place.dir.display()))? {
            ui::print("nothing was deleted");
            return Ok(ExitCode::SUCCESS);
        }
    }
    devstack::delete_data(&place.dir, &place.project.id())?;
    ui.step(&format!("deleted {}", place.dir.display()));
    Ok(ExitCode::SUCCESS)
}
