//! `cargo xtask rename NAME`: makes the template yours. The name is one word in many places (crate, binary, images, database,
//! documents), so this replaces the word everywhere, in the case in which it stands, and then has Cargo and rustfmt put in order
//! what depends on the alphabet and on the width of lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;
use devstack::project::Project;

use crate::cargo;
use crate::ui::{self, Ui};

/// The word to replace. In two parts, so that this file means the same after a rename.
const OLD: &str = concat!("bal", "last");

/// Cargo puts a program's name behind this as it is, hyphens included.
const AS_IT_IS: &str = "CARGO_BIN_EXE_";

const EXAMPLES: &str = "\
Examples:
  cargo xtask rename acme-backend --dry-run    which files would change
  cargo xtask rename acme-backend              change them; then: cargo verify

The name is lower case: letters, digits, hyphens. Needs a working tree without changes, so that `git checkout .` is the way back.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask rename [OPTIONS] NAME", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The project's new name
    name: String,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let project = Project::find()?;
    let ui = Ui::new();
    let names = Names::new(&args.name)?;
    ensure!(
        !taken(&project, &args.name)?,
        "`{}` is the name of a package that this workspace has or uses: choose another one",
        args.name
    );
    if !args.dry_run {
        let changes = git(&project, &["status", "--porcelain"])?;
        ensure!(changes.trim().is_empty(), "the working tree has changes: commit or stash them first");
    }
    let files = git(&project, &["ls-files"])?;
    let mut changed = 0;
    for file in files.lines() {
        changed += usize::from(rename_in(project.root(), file, &names, args.dry_run)?);
    }
    if args.dry_run {
        ui::print(&format!("{changed} files would change"));
        return Ok(ExitCode::SUCCESS);
    }
    ui.step(&format!("{changed} files changed"));
    // Cargo.lock is in the order of names, code in the width of lines.
    cargo::run_ok(
        cargo::cargo(&project)
            .args(["metadata", "--format-version=1", "--quiet"])
            .stdout(std::process::Stdio::null()),
    )?;
    cargo::run_ok(cargo::cargo(&project).args(["fmt", "--all"]))?;
    ui.step(&format!("this is {} now; `cargo verify` says whether all is well", args.name));
    Ok(ExitCode::SUCCESS)
}

/// One name in the cases in which it is written.
struct Names {
    kebab: String,
    snake: String,
    title: String,
    upper: String,
}

impl Names {
    fn new(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fine = (2..=40).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(plain)
            && !name.ends_with('-')
            && !name.contains("--");
        if !fine {
            bail!(
                "`{name}` is no name: 2 to 40 lower-case letters, digits and single hyphens, a letter first"
            );
        }
        ensure!(!name.contains(OLD), "`{name}` contains the old name");
        let snake = name.replace('-', "_");
        let title = name.split('-').map(capitalised).collect::<Vec<_>>().join(" ");
        Ok(Self { kebab: name.to_owned(), upper: snake.to_uppercase(), snake, title })
    }

    /// The text with every occurrence replaced. Beside an underscore or a `::` it is part of an identifier, where a hyphen
    /// cannot be.
    fn replace(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = find_any_case(rest) {
            let (before, found, after) = (&rest[..at], &rest[at..at + OLD.len()], &rest[at + OLD.len()..]);
            out.push_str(before);
            let identifier = (before.ends_with('_') && !before.ends_with(AS_IT_IS))
                || after.starts_with('_')
                || after.starts_with("::");
            out.push_str(if found.starts_with(|c: char| c.is_lowercase()) {
                if identifier { &self.snake } else { &self.kebab }
            } else if found.ends_with(|c: char| c.is_uppercase()) {
                &self.upper
            } else {
                &self.title
            });
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

/// Lower case, capitalised or upper case; nothing in between is ours.
fn find_any_case(text: &str) -> Option<usize> {
    [OLD.to_owned(), capitalised(OLD), OLD.to_uppercase()].iter().filter_map(|word| text.find(word)).min()
}

/// A package of the lockfile has this name.
fn taken(project: &Project, name: &str) -> Result<bool> {
    let lock = fs::read_to_string(project.root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    Ok(lock.lines().any(|line| line == format!("name = \"{name}\"")))
}

fn git(project: &Project, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    let out = output_within(command.current_dir(project.root()).args(arguments), Duration::from_secs(60))?;
    ensure!(
        out.status.success(),
        "git {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Replaces in one file and in its path; says whether there was anything. Files that are no text stay as they are.
fn rename_in(root: &Path, file: &str, names: &Names, dry_run: bool) -> Result<bool> {
    let path = root.join(file);
    let target = root.join(names.replace(file));
    let Ok(text) = fs::read_to_string(&path) else { return Ok(false) };
    let replaced = names.replace(&text);
    if replaced == text && target == path {
        return Ok(false);
    }
    if dry_run {
        ui::print(file);
        return Ok(true);
    }
    if replaced != text {
        fs::write(&path, replaced).with_context(|| format!("cannot write {file}"))?;
    }
    if target != path {
        move_file(&path, &target)?;
    }
    Ok(true)
}

fn move_file(from: &Path, to: &PathBuf) -> Result<()> {
    let directory = to.parent().context("a file is in a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::rename(from, to).with_context(|| format!("cannot move {}", from.display()))?;
    // What is empty now goes, too; what is not, stays.
    let mut left = from.parent();
    while let Some(directory) = left {
        if fs::remove_dir(directory).is_err() {
            break;
        }
        left = directory.parent();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The old name in three cases, for texts that a rename must leave alone.
    fn old(text: &str) -> String {
        text.replace("{n}", OLD).replace("{N}", &OLD.to_uppercase()).replace("{T}", &capitalised(OLD))
    }

    #[test]
    fn the_name_is_replaced_in_the_case_in_which_it_stands() {
        let names = Names::new("acme-backend").unwrap();
        for (before, after) in [
            ("the {T} stack, {n}:latest", "the Acme Backend stack, acme-backend:latest"),
            ("{N}_IMAGE", "ACME_BACKEND_IMAGE"),
            ("stub_{n} {n}_template_ {n}::run", "stub_acme_backend acme_backend_template_ acme_backend::run"),
            ("crates/{n}/src/main.rs", "crates/acme-backend/src/main.rs"),
            ("CARGO_BIN_EXE_{n}\")", "CARGO_BIN_EXE_acme-backend\")"),
            ("nothing here", "nothing here"),
        ] {
            assert_eq!(names.replace(&old(before)), after);
        }
    }

    /// A hyphen is no part of a name in Rust or TypeScript.
    #[test]
    fn no_variable_bears_the_projects_name() {
        let project = Project::find().unwrap();
        let names = Names::new("acme-backend").unwrap();
        for file in git(&project, &["ls-files", "*.rs", "*.ts"]).unwrap().lines() {
            // Deleted here, and not yet committed.
            let Ok(text) = fs::read_to_string(project.root().join(file)) else { continue };
            let renamed = names.replace(&text);
            for word in ["let", "let mut", "const", "static", "fn", "mod", "for", "struct"] {
                let found = [" ", "\n", "("].iter().find(|start| {
                    renamed.contains(&format!("{start}{word} {} ", names.kebab))
                        || renamed.contains(&format!("{start}{word} {}:", names.kebab))
                        || renamed.contains(&format!("{start}{word} {}(", names.kebab))
                });
                assert!(found.is_none(), "{file}: `{word} {}`", names.kebab);
            }
            let inserted =
                ["${", "{"].iter().find(|start| renamed.contains(&format!("{start}{}}}", names.kebab)));
            assert!(inserted.is_none(), "{file}: a variable in a text");
        }
    }

    /// Nor of an unquoted one in SQL.
    #[test]
    fn in_sql_the_name_is_quoted() {
        let project = Project::find().unwrap();
        let names = Names::new("acme-backend").unwrap();
        let mut seen = 0;
        for file in git(&project, &["ls-files", "*.rs", "*.sql", "*.sh", "*.yml", "*.md"]).unwrap().lines() {
            let Ok(text) = fs::read_to_string(project.root().join(file)) else { continue };
            let renamed = names.replace(&text).to_lowercase();
            for what in ["database", "role", "user", "schema", "extension", "table"] {
                for verb in ["create", "alter", "drop"] {
                    let statement = format!("{verb} {what} ");
                    seen += renamed.matches(&statement).count();
                    assert!(!renamed.contains(&format!("{statement}{}", names.kebab)), "{file}: {statement}");
                }
            }
        }
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for name in [
            "",
            "a",
            "Acme",
            "acme_backend",
            "9lives",
            "-acme",
            "acme-",
            "a--b",
            "acme backend",
            "ünder",
            "../x",
        ] {
            assert!(Names::new(name).is_err(), "{name}");
        }
        assert!(Names::new(&format!("my-{OLD}")).is_err());
        assert!(Names::new("acme2").is_ok());
    }

    #[test]
    fn a_name_that_a_dependency_has_is_refused() {
        let project = Project::find().unwrap();
        assert!(taken(&project, "tokio").unwrap() && taken(&project, "jobs").unwrap());
        // Not the sample's name: whoever takes that has it.
        assert!(!taken(&project, "no-such-package").unwrap());
    }
}
