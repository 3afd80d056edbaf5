//! `cargo xtask removal`: does what `docs/removing-parts.md` and `docs/adding-a-job.md` say, in a copy of the tree, builds it, and
//! runs what they run.

mod recipe;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use devstack::project::Project;

use crate::ui::Ui;
use crate::{cargo, interrupts};
use recipe::{Changes, Recipe};

/// The documents with recipes.
const DOCUMENTS: [&str; 2] = ["docs/removing-parts.md", "docs/adding-a-job.md"];

const EXAMPLES: &str = "\
Examples:
  cargo xtask removal                    each part alone, then all of them together; a minute or two for each
  cargo xtask removal documents          those whose name begins so
  cargo xtask removal --list             name them, check that every step fits the tree, build nothing

The copy and all that is built of it are in target/removal: some gigabytes, and the first time takes some minutes more.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask removal [OPTIONS] [NAME]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only parts whose name begins with this; --list names them
    name: Option<String>,
    /// Name the parts and check their steps, build nothing
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let project = Project::find()?;
    let recipes = recipes(project.root())?;
    let wanted = args.name.as_deref().unwrap_or_default().to_lowercase();
    let chosen: Vec<&Recipe> =
        recipes.iter().filter(|recipe| recipe.name.to_lowercase().starts_with(&wanted)).collect();
    ensure!(!chosen.is_empty(), "there is no such part; --list names them");
    let together = apply(project.root(), &recipes, &chosen)?;
    if args.list {
        for recipe in &chosen {
            apply(project.root(), &recipes, &[recipe])?;
            ui.step(&recipe.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let copy = Copy::new(&project)?;
    for recipe in &chosen {
        copy.build(&apply(project.root(), &recipes, &[recipe])?)
            .with_context(|| format!("after `{}`", recipe.name))?;
        ui.step(&format!("builds after `{}`", recipe.name));
        for command in &recipe.run {
            copy.run(command).with_context(|| format!("after `{}`", recipe.name))?;
            ui.step(&format!("passes: {command}"));
        }
    }
    if chosen.len() > 1 {
        copy.build(&together).context("after all of them together")?;
        ui.step("builds after all of them together");
    }
    Ok(ExitCode::SUCCESS)
}

fn recipes(root: &Path) -> Result<Vec<Recipe>> {
    let mut all = Vec::new();
    for document in DOCUMENTS {
        let text =
            fs::read_to_string(root.join(document)).with_context(|| format!("cannot read {document}"))?;
        all.extend(recipe::parse(&text).with_context(|| document.to_owned())?);
    }
    Ok(all)
}

/// What these recipes make of the tree, each after those that have to come first.
fn apply(root: &Path, all: &[Recipe], chosen: &[&Recipe]) -> Result<Changes> {
    let (mut changes, mut done) = (Changes::new(), Vec::<&str>::new());
    for recipe in chosen {
        for first in &recipe.first {
            let first = all.iter().find(|other| other.name == *first);
            let first =
                first.with_context(|| format!("{}: what has to come first is not there", recipe.name))?;
            if !done.contains(&&*first.name) {
                first.apply(root, &mut changes)?;
                done.push(&first.name);
            }
        }
        if !done.contains(&&*recipe.name) {
            recipe.apply(root, &mut changes)?;
            done.push(&recipe.name);
        }
    }
    Ok(changes)
}

/// A copy of the checkout, with what is not committed yet. It has a target folder of its own: cargo knows a crate by its path within
/// the workspace, and would take what is built here for the checkout's.
struct Copy<'a> {
    project: &'a Project,
    root: PathBuf,
    files: Vec<String>,
}

impl<'a> Copy<'a> {
    fn new(project: &'a Project) -> Result<Self> {
        let root = cargo::target_dir()?.join("removal");
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(project.root())
            .output()
            .context("cannot run git")?;
        ensure!(listed.status.success(), "git does not list the files: is this a checkout?");
        let listed = String::from_utf8(listed.stdout).context("a file's name is no UTF-8")?;
        let files = listed.split('\0').filter(|file| !file.is_empty()).map(str::to_owned);
        let files: Vec<String> = files.filter(|file| project.root().join(file).is_file()).collect();
        // Away with what an earlier run left that is in the tree no more.
        for entry in ["crates", "xtask", "migrations", "docs"] {
            let _ = fs::remove_dir_all(root.join(entry));
        }
        Ok(Self { project, root, files })
    }

    /// The tree with these changes, checked: no error and no warning, in the tests neither.
    fn build(&self, changes: &Changes) -> Result<()> {
        self.write(changes)?;
        let mut check = self.cargo();
        check.args(["check", "--workspace", "--tests", "--quiet"]).stderr(Stdio::piped());
        let child = check.spawn().context("cannot run cargo")?;
        let output = child.wait_with_output().context("cannot wait for cargo")?;
        let said = String::from_utf8_lossy(&output.stderr);
        if interrupts::stopping() {
            return Err(interrupts::Interrupted.into());
        }
        ensure!(output.status.success() && !said.contains("warning: "), "{said}");
        Ok(())
    }

    /// Runs a command of cargo's that a document names.
    fn run(&self, command: &str) -> Result<()> {
        let arguments = command.strip_prefix("cargo ").context("a recipe runs cargo")?;
        cargo::run_ok(self.cargo().args(arguments.split_whitespace()))
    }

    fn cargo(&self) -> Command {
        let mut cargo = cargo::cargo(self.project);
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", self.root.join("target"));
        cargo
    }

    /// Writes what differs, so that cargo builds no more than it must.
    fn write(&self, changes: &Changes) -> Result<()> {
        let gone = |file: &str| {
            changes.iter().any(|(path, content)| content.is_none() && Path::new(file).starts_with(path))
        };
        for file in &self.files {
            let target = self.root.join(file);
            if gone(file) {
                let _ = fs::remove_file(&target);
                // And what is empty now: cargo takes each folder in `crates` for a crate.
                let within = |folder: &&Path| *folder != self.root;
                for folder in target.ancestors().skip(1).take_while(within) {
                    if fs::remove_dir(folder).is_err() {
                        break;
                    }
                }
                continue;
            }
            match changes.get(Path::new(file)) {
                Some(Some(content)) => put(&target, content.as_bytes())?,
                _ => put(&target, &fs::read(self.project.root().join(file))?)?,
            }
        }
        for (path, content) in changes {
            if let Some(content) = content {
                put(&self.root.join(path), content.as_bytes())?;
            }
        }
        // What a recipe before this one made.
        let made =
            |path: &Path| changes.contains_key(path) || self.files.iter().any(|file| Path::new(file) == path);
        for folder in ["crates/job-specs/src", "crates/worker/src/jobs"] {
            for entry in fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten() {
                let path = Path::new(folder).join(entry.file_name());
                if entry.path().is_file() && !made(&path) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }
}

fn put(target: &Path, content: &[u8]) -> Result<()> {
    if fs::read(target).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let Some(folder) = target.parent() else { bail!("a file is in a folder") };
    fs::create_dir_all(folder)?;
    fs::write(target, content).with_context(|| format!("cannot write {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_recipes_fits_the_tree() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let recipes = recipes(root).unwrap();
        assert!(recipes.len() > 5, "{recipes:?}");
        for recipe in &recipes {
            apply(root, &recipes, &[recipe]).unwrap();
        }
        apply(root, &recipes, &recipes.iter().collect::<Vec<_>>()).unwrap();
    }
}
