//! Running cargo and other commands as children that end when we are told to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use devstack::project::Project;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupts::{self, Interrupted};

/// Time for a child to end by itself: Ctrl-C on a terminal reaches it directly.
const OWN_ACCORD: Duration = Duration::from_secs(2);

/// Cargo in the project's directory, with the environment that the user has and not the one that `cargo run` made for
/// this program: its package variables would make build scripts run again.
pub(crate) fn cargo(project: &Project) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(project.root());
    for (name, _) in std::env::vars_os() {
        let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| own.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// This program. A build in between may have replaced the file; Linux then adds a remark to the old one's name.
pub(crate) fn own_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    match own.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) if !own.exists() => Ok(PathBuf::from(path)),
        _ => Ok(own),
    }
}

/// Where cargo puts programs of the profile that this one was built with.
pub(crate) fn output_dir() -> Result<PathBuf> {
    own_program()?.parent().map(Path::to_owned).context("a program is in a directory")
}

/// Where cargo puts everything: the parent of the directory of this program's profile.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let own = output_dir()?;
    own.parent().map(Path::to_owned).context("a profile's directory is in the target directory")
}

/// Runs a command to its end, with this terminal's input and output.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    wait(&mut child)
}

/// Runs a command; an error when it fails.
pub(crate) fn run_ok(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = run(command)?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Waits for a child; ends it when we are interrupted.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut interrupted_at: Option<Instant> = None;
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            return if interrupted_at.is_some() { Err(Interrupted.into()) } else { Ok(status) };
        }
        if interrupts::stopping() {
            let since = *interrupted_at.get_or_insert_with(Instant::now);
            if interrupts::killing() || since.elapsed() > OWN_ACCORD * 8 {
                let _ = kill(pid, Signal::SIGKILL);
            } else if !asked && since.elapsed() > OWN_ACCORD {
                let _ = kill(pid, Signal::SIGTERM);
                asked = true;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = std::iter::once(program).chain(command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.contains([' ', '(', '|', '&']) { format!("'{word}'") } else { word.into_owned() }
    }));
    words.collect::<Vec<_>>().join(" ")
}
