//! `cargo xtask prepare`: the descriptions of SQL queries in `.sqlx`, with which the project builds without a database.
//!
//! The query macros of sqlx write a description when they are expanded against a live database and `SQLX_OFFLINE_DIR`
//! is set (`QueryData::save_in` in sqlx-macros-core 0.9). So: a throw-away Postgres, the migrations, and a `cargo check`
//! that has to expand every query anew. The result is compared with `.sqlx`, or replaces it. sqlx-cli is not needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use devstack::Install;
use devstack::project::Project;

use crate::throwaway::Throwaway;
use crate::ui::Ui;
use crate::{cargo, interrupts};

const EXAMPLES: &str = "\
Examples:
  cargo xtask prepare             after changing a query or a migration; commit .sqlx with it
  cargo xtask prepare --check     say which descriptions are out of date; part of cargo verify
  cargo xtask prepare -p jobs     only one crate, while others do not compile; deletes nothing";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask prepare [OPTIONS]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Change nothing; fail when a description is missing, unused or different
    #[arg(long)]
    check: bool,
    /// Only the queries of this crate (repeatable)
    #[arg(short, long, value_name = "CRATE", conflicts_with = "check")]
    package: Vec<String>,
    /// Install a missing Postgres without asking
    #[arg(short, long)]
    yes: bool,
    /// Never install anything
    #[arg(long, conflicts_with = "yes")]
    no_install: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let project = Project::find()?;
    let install = match (args.yes, args.no_install) {
        (_, true) => Install::Never,
        (true, false) => Install::Yes,
        (false, false) => Install::Ask,
    };
    let throwaway = Throwaway::start(&project, install, &ui)?;
    let fresh = describe(&project, &throwaway.services.postgres.url, &args.package, &ui)?;
    if args.check {
        compare(&project, &fresh)?;
        ui.step(&format!(".sqlx is up to date: {} queries", fresh.len()));
    } else {
        let changed = replace(&project, &fresh, args.package.is_empty())?;
        ui.step(&format!("{} queries described, {changed} files changed in .sqlx", fresh.len()));
    }
    Ok(ExitCode::SUCCESS)
}

/// File name to content, as they should be in `.sqlx`.
pub(crate) type Descriptions = BTreeMap<String, String>;

/// Has the queries described by the database at `url`, which gets migrated.
pub(crate) fn describe(project: &Project, url: &str, packages: &[String], ui: &Ui) -> Result<Descriptions> {
    ui.step("applying migrations");
    let mut migrate = cargo::cargo(project);
    migrate.args(["run", "--quiet", "--package", "test-support", "--bin", "migrate", "--", url]);
    if !cargo::run(&mut migrate)?.success() {
        bail!("the migrations cannot be applied to an empty database");
    }
    let fresh = TempDir::new(project)?;
    ui.step("describing queries");
    let status = {
        let _touched = Touched::new(&project.root().join("crates"))?;
        cargo::run(&mut check_command(project, url, &fresh.0, packages))?
    };
    if !status.success() {
        bail!("the queries do not fit the migrations, or the code does not compile: see above");
    }
    read_descriptions(&fresh.0)
}

fn check_command(project: &Project, url: &str, fresh: &Path, packages: &[String]) -> Command {
    let mut command = cargo::cargo(project);
    command.args(["check", "--quiet", "--all-targets"]);
    if packages.is_empty() {
        command.arg("--workspace");
    }
    for package in packages {
        command.arg("--package").arg(package);
    }
    // Variables that are set win over [env] in .cargo/config.toml.
    command.env("SQLX_OFFLINE", "false").env("SQLX_OFFLINE_DIR", fresh).env("DATABASE_URL", url);
    command
}

fn read_descriptions(dir: &Path) -> Result<Descriptions> {
    let mut found = Descriptions::new();
    let Ok(entries) = fs::read_dir(dir) else { return Ok(found) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("query-") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            found.insert(name, text);
        }
    }
    Ok(found)
}

/// Fails with the list of differences between `.sqlx` and what it should be.
pub(crate) fn compare(project: &Project, fresh: &Descriptions) -> Result<()> {
    let committed = read_descriptions(&project.root().join(".sqlx"))?;
    let names: BTreeSet<&String> = fresh.keys().chain(committed.keys()).collect();
    let mut differences = String::new();
    for name in names {
        let (kind, text) = match (committed.get(name), fresh.get(name)) {
            (None, Some(text)) => ("missing", text),
            (Some(text), None) => ("unused", text),
            (Some(old), Some(new)) if old != new => ("changed", new),
            _ => continue,
        };
        differences.push_str(&["  ", kind, ": ", &excerpt(text), "\n"].concat());
    }
    if differences.is_empty() {
        return Ok(());
    }
    bail!(
        "descriptions of queries in .sqlx are out of date:\n{differences}  repair and commit: cargo xtask prepare"
    )
}

/// Makes `.sqlx` what it should be; gives the number of files written or deleted.
fn replace(project: &Project, fresh: &Descriptions, complete: bool) -> Result<usize> {
    let dir = project.root().join(".sqlx");
    fs::create_dir_all(&dir).context("cannot create .sqlx")?;
    let committed = read_descriptions(&dir)?;
    let mut changed = 0;
    for (name, text) in fresh {
        if committed.get(name) != Some(text) {
            fs::write(dir.join(name), text).with_context(|| format!("cannot write .sqlx/{name}"))?;
            changed += 1;
        }
    }
    for name in committed.keys().filter(|name| complete && !fresh.contains_key(*name)) {
        fs::remove_file(dir.join(name)).with_context(|| format!("cannot delete .sqlx/{name}"))?;
        changed += 1;
    }
    Ok(changed)
}

/// The beginning of the query in a description.
fn excerpt(description: &str) -> String {
    let line =
        description.lines().find_map(|line| line.trim().strip_prefix("\"query\": \"")).unwrap_or_default();
    let sql = line.trim_end_matches("\",").replace("\\n", " ").replace("\\\"", "\"");
    let words: Vec<&str> = sql.split_whitespace().collect();
    words.join(" ").chars().take(100).collect()
}

/// A directory for the fresh descriptions, deleted when dropped. Inside the project: the compiler runs as the caller.
struct TempDir(PathBuf);

impl TempDir {
    fn new(project: &Project) -> Result<Self> {
        let dir = cargo::output_dir()?.join(format!("sqlx-{}-{}", project.id(), std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Sources with queries, made to look changed, so that their macros are expanded again. Their times are put back
/// afterwards: other builds (tests, clippy) have seen these sources and need not look again.
struct Touched {
    now: SystemTime,
    files: Vec<(PathBuf, SystemTime)>,
}

impl Touched {
    fn new(dir: &Path) -> Result<Self> {
        let mut touched = Self { now: SystemTime::now(), files: Vec::new() };
        touched.add(dir)?;
        Ok(touched)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
                self.add(&entry?.path())?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap_or_default();
            if ["query!(", "query_as!(", "query_scalar!("].iter().any(|name| text.contains(name)) {
                let before = modified(path)?;
                set_modified(path, self.now)?;
                self.files.push((path.to_owned(), before));
            }
        }
        Ok(())
    }
}

impl Drop for Touched {
    fn drop(&mut self) {
        for (path, before) in &self.files {
            // Unless somebody has edited the file meanwhile: that change must be seen.
            if modified(path).is_ok_and(|time| time == self.now) {
                let _ = set_modified(path, *before);
            }
        }
    }
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path)
        .and_then(|meta| meta.modified())
        .with_context(|| format!("cannot read {}", path.display()))
}

fn set_modified(path: &Path, time: SystemTime) -> Result<()> {
    File::options()
        .append(true)
        .open(path)
        .and_then(|file| file.set_modified(time))
        .with_context(|| format!("cannot set the time of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_named_by_its_query() {
        let text = "{\n  \"db_name\": \"PostgreSQL\",\n  \"query\": \"select id\\n   from \\\"user\\\"\",\n  \"describe\": {}";
        assert_eq!(excerpt(text), "select id from \"user\"");
    }

    #[test]
    fn differences_are_listed_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Cargo.lock"), "").unwrap();
        fs::create_dir(dir.path().join(".sqlx")).unwrap();
        let project = Project::containing(dir.path()).unwrap();
        let description = |sql: &str| format!("{{\n  \"query\": \"{sql}\",\n}}");
        for (name, sql) in [("query-1.json", "kept"), ("query-2.json", "old"), ("query-3.json", "unused one")]
        {
            fs::write(dir.path().join(".sqlx").join(name), description(sql)).unwrap();
        }
        let fresh: Descriptions =
            [("query-1.json", "kept"), ("query-2.json", "new"), ("query-4.json", "added")]
                .map(|(name, sql)| (name.to_owned(), description(sql)))
                .into();
        let error = compare(&project, &fresh).unwrap_err().to_string();
        for expected in ["changed: new", "unused: unused one", "missing: added", "cargo xtask prepare"] {
            assert!(error.contains(expected), "{error}");
        }
        assert!(!error.contains("kept"), "{error}");
        assert_eq!(replace(&project, &fresh, true).unwrap(), 3);
        compare(&project, &fresh).unwrap();
    }

    #[test]
    fn touched_sources_get_their_time_back() {
        let dir = tempfile::tempdir().unwrap();
        let (with, without) = (dir.path().join("a.rs"), dir.path().join("b.rs"));
        fs::write(&with, "sqlx::query!(\"select 1\")").unwrap();
        fs::write(&without, "fn f() {}").unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        set_modified(&with, long_ago).unwrap();
        set_modified(&without, long_ago).unwrap();
        let touched = Touched::new(dir.path()).unwrap();
        assert!(modified(&with).unwrap() > long_ago);
        assert_eq!(modified(&without).unwrap(), long_ago);
        drop(touched);
        assert_eq!(modified(&with).unwrap(), long_ago);
        let touched = Touched::new(dir.path()).unwrap();
        fs::write(&with, "sqlx::query!(\"select 2\")").unwrap();
        drop(touched);
        assert!(modified(&with).unwrap() > long_ago, "an edit in between stays visible");
    }
}
