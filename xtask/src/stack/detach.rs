//! `--detach`: everything that asks or shows progress happens here, in the terminal; then a copy of this program takes
//! over in the background, and this one waits until that one is ready.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devstack::Services;
use devstack::process::ProcessId;
use nix::sys::signal::Signal;

use super::state::{Phase, State};
use super::{Args, Place, supervisor};
use crate::cargo;
use crate::interrupts::{self, Interrupted};
use crate::ui::Ui;

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode> {
    let ui = Ui::new();
    Services::install_missing(&place.spec(args, &|line| ui.step(line)))?;
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => supervisor::build(place, &ui)?,
    };
    interrupts::check()?;

    fs::create_dir_all(place.logs()).with_context(|| format!("cannot create {}", place.logs().display()))?;
    let log_path = place.logs().join("stack.log");
    let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new(cargo::own_program()?);
    command.args(["stack", "--supervised", "--no-install"]);
    if args.watch {
        command.arg("--watch");
    } else {
        command.arg("--binary").arg(&binary);
    }
    command
        .current_dir(place.project.root())
        // Ctrl-C in this terminal is for whatever runs there next.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share a file")?)
        .stderr(log);
    let mut child = command.spawn().context("cannot start the background process")?;
    let id = ProcessId::of_child(&child);

    // Its step lines appear here too, until it is ready.
    let mut shown = File::open(&log_path).context("cannot read the log")?;
    loop {
        let ended = child.try_wait().context("cannot wait for the background process")?;
        // Looked at before the log is copied: what was said before "ready" is then shown in full.
        let ready = State::read(&place.dir)
            .is_some_and(|state| state.phase == Phase::Ready && state.supervisor == id);
        copy(&mut shown);
        if let Some(status) = ended {
            copy(&mut shown);
            if status.code() == Some(2) {
                return Ok(ExitCode::from(2));
            }
            bail!("the stack did not start ({status}); logs are in {}", place.logs().display());
        }
        if ready {
            return Ok(ExitCode::SUCCESS);
        }
        if interrupts::stopping() {
            id.stop(&[(Signal::SIGTERM, Duration::from_secs(60))]);
            return Err(Interrupted.into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn copy(from: &mut File) {
    let mut text = String::new();
    let position = from.stream_position().unwrap_or(0);
    if from.read_to_string(&mut text).is_err() {
        // Half a character was written: the next look sees it whole.
        let _ = from.seek(SeekFrom::Start(position));
        return;
    }
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
