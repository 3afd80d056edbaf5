//! Installing the servers with the machine's package manager: as root the command is shown and run, otherwise someone
//! is asked first.

use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::Uid;

use crate::Unavailable;
use crate::system::System;

/// Whether missing servers may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Install {
    /// Root: yes. Otherwise ask on a terminal; without one the answer is no.
    Ask,
    /// Yes, without asking.
    Yes,
    /// No.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Package {
    Postgres,
    Redis,
    /// Python 3 with its `venv` module.
    Python,
    Nginx,
}

struct Manager {
    program: &'static str,
    needs_root: bool,
    before: Option<&'static [&'static str]>,
    install: &'static [&'static str],
    postgres: &'static str,
    redis: &'static str,
    python: &'static str,
}

const MANAGERS: [Manager; 4] = [
    Manager {
        program: "apt-get",
        needs_root: true,
        before: Some(&["update"]),
        install: &["install", "-y", "--no-install-recommends"],
        postgres: "postgresql",
        redis: "redis-server",
        python: "python3-venv",
    },
    Manager {
        program: "dnf",
        needs_root: true,
        before: None,
        install: &["install", "-y"],
        postgres: "postgresql-server",
        // By file: newer releases ship Valkey under this name.
        redis: "/usr/bin/redis-server",
        python: "python3",
    },
    Manager {
        program: "pacman",
        needs_root: true,
        before: None,
        install: &["-Sy", "--needed", "--noconfirm"],
        postgres: "postgresql",
        redis: "valkey",
        python: "python",
    },
    Manager {
        program: "brew",
        needs_root: false,
        before: None,
        install: &["install"],
        postgres: "postgresql@17",
        redis: "redis",
        python: "python3",
    },
];

/// Commands that install what is missing, ready to show and to run.
pub(crate) struct Plan {
    /// The package manager, behind sudo where that is needed.
    programs: Vec<PathBuf>,
    /// Arguments of one command each.
    commands: Vec<Vec<&'static str>>,
    as_root: bool,
}

impl Plan {
    /// `None`: no package manager that we know, or no way to become root.
    pub(crate) fn new(system: &System, missing: &[Package]) -> Option<Self> {
        let as_root = Uid::effective().is_root();
        let usable = |m: &&Manager| {
            let rights = if m.needs_root { as_root || system.program("sudo").is_some() } else { !as_root };
            rights && system.program(m.program).is_some()
        };
        let manager = MANAGERS.iter().find(usable)?;
        let mut programs = vec![system.program(manager.program)?];
        if manager.needs_root && !as_root {
            programs.insert(0, system.program("sudo")?);
        }
        let mut commands: Vec<Vec<&str>> = manager.before.map(<[_]>::to_vec).into_iter().collect();
        let packages = missing.iter().map(|package| match package {
            Package::Postgres => manager.postgres,
            Package::Redis => manager.redis,
            Package::Python => manager.python,
            // Called so by all of them.
            Package::Nginx => "nginx",
        });
        commands.push(manager.install.iter().copied().chain(packages).collect());
        Some(Self { programs, commands, as_root })
    }

    /// The commands as one would type them.
    pub(crate) fn shown(&self) -> String {
        self.commands.iter().map(|arguments| self.line(arguments)).collect::<Vec<_>>().join(" && ")
    }

    fn line(&self, arguments: &[&str]) -> String {
        let programs =
            self.programs.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy());
        let words: Vec<_> = programs.chain(arguments.iter().map(|word| (*word).into())).collect();
        words.join(" ")
    }

    /// Runs the commands if that is allowed. `Err(reason)` in the inner result: not installed, and why.
    pub(crate) fn offer(
        &self,
        system: &System,
        install: Install,
        say: &dyn Fn(&str),
    ) -> Result<Result<(), String>> {
        match install {
            Install::Never => return Ok(Err("installing is switched off (--no-install)".to_owned())),
            Install::Ask if !self.as_root => {
                if !system.terminal {
                    return Ok(Err("nobody to ask: not on a terminal (--yes installs)".to_owned()));
                }
                if !ask(&format!("Install what is missing with `{}`?", self.shown()))? {
                    return Ok(Err("installing was declined".to_owned()));
                }
            }
            Install::Ask | Install::Yes => {}
        }
        say(&format!("installing what is missing: {}", self.shown()));
        let debian = self.as_root && self.programs[0] == Path::new("/usr/bin/apt-get");
        let _quiet = if debian { NoAutostart::new(Path::new("/usr/sbin/policy-rc.d")) } else { None };
        for arguments in &self.commands {
            let status = Command::new(&self.programs[0])
                .args(&self.programs[1..])
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .status()
                .with_context(|| format!("cannot run {}", self.programs[0].display()))?;
            if !status.success() {
                return Ok(Err(format!("`{}` failed ({status})", self.line(arguments))));
            }
        }
        Ok(Ok(()))
    }
}

/// Installs Python with its `venv` module, by the same rules as the servers. The inner error says why not.
pub fn install_python(system: &System, install: Install, say: &dyn Fn(&str)) -> Result<Result<(), String>> {
    install_one(Package::Python, system, install, say)
}

/// Finds nginx, for the tests of `deploy/nginx`, or installs it by the same rules as the servers.
///
/// # Errors
/// [`Unavailable`] with the ways out, when there is none and none may be installed.
pub fn nginx(system: &System, install: Install, say: &dyn Fn(&str)) -> Result<PathBuf> {
    if let Some(program) = system.program("nginx") {
        return Ok(program);
    }
    let refused = install_one(Package::Nginx, system, install, say)?.err();
    system.program("nginx").ok_or_else(|| {
        let reason = refused.unwrap_or_else(|| "it was installed, but is not found".to_owned());
        let text = format!(
            "the tests of deploy/nginx need nginx ({reason})\n  - Debian, Ubuntu: sudo apt-get install nginx\n  \
             - other systems: its package is called nginx too"
        );
        Unavailable(text).into()
    })
}

fn install_one(
    package: Package,
    system: &System,
    install: Install,
    say: &dyn Fn(&str),
) -> Result<Result<(), String>> {
    match Plan::new(system, &[package]) {
        Some(plan) => plan.offer(system, install, say),
        None => Ok(Err("no package manager that could be used".to_owned())),
    }
}

/// Asks a yes/no question; only a clear yes is one.
pub fn ask(question: &str) -> Result<bool> {
    let mut err = std::io::stderr();
    write!(err, "{question} [y/N] ").and_then(|()| err.flush()).context("cannot write to the terminal")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read from the terminal")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Debian's packages start their servers on installation. This is the documented way to say no (`man invoke-rc.d`);
/// it is taken back when dropped, and left alone where the machine has its own.
struct NoAutostart(PathBuf);

impl NoAutostart {
    fn new(path: &Path) -> Option<Self> {
        let mut file = fs::File::create_new(path).ok()?;
        let guard = Self(path.to_owned());
        file.write_all(b"#!/bin/sh\nexit 101\n").ok()?;
        file.set_permissions(fs::Permissions::from_mode(0o755)).ok()?;
        Some(guard)
    }
}

impl Drop for NoAutostart {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
