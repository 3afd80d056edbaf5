//! `cargo xtask database dump | load`: hands a development database to somebody else, and takes theirs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use devstack::process::output_within;
use devstack::{System, Unavailable};

use crate::stack;
use crate::ui::Ui;

/// A development database is small.
const TIMEOUT: Duration = Duration::from_secs(600);
/// What is there goes first, in the same transaction: whatever is wrong with the dump, nothing is lost.
const EMPTY: &str = "
set client_min_messages = warning;
do $$
declare r record;
begin
  for r in select format('public.%I', c.relname) as name, c.relkind as kind from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S') and not c.relispartition
      and not exists (select 1 from pg_depend d where d.objid = c.oid and (d.deptype = 'e' or c.relkind = 'S' and d.deptype in ('i', 'a')))
  loop
    execute format('drop %s if exists %s cascade',
      case r.kind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' else 'table' end, r.name);
  end loop;
  for r in select format('public.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) as name from pg_proc p
    where p.pronamespace = 'public'::regnamespace and not exists (select 1 from pg_depend d where d.objid = p.oid and d.deptype = 'e')
  loop
    execute format('drop routine if exists %s cascade', r.name);
  end loop;
  for r in select format('public.%I', t.typname) as name from pg_type t
    where t.typnamespace = 'public'::regnamespace and t.typtype in ('e', 'd') and not exists (select 1 from pg_depend d where d.objid = t.oid and d.deptype = 'e')
  loop
    execute format('drop type if exists %s cascade', r.name);
  end loop;
end $$;
";

const EXAMPLES: &str = "\
Examples:
  cargo xtask database dump bug-417.dump     the running stack's database, whole, into one file
  cargo xtask database load bug-417.dump     replaces the running stack's database (asks first)
  DATABASE_URL=postgres://... cargo xtask database dump all.dump     another one than the stack's

A dump holds everything: accounts, keys (as hashes), jobs. For data that may leave your machine, so not for production's.
`load` replaces all or nothing, and only on this machine. Then `cargo stack` applies the migrations that the dump lacks.
Needs pg_dump, pg_restore and psql, which come with Postgres.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask database <dump|load> FILE", after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write the database into a file
    Dump {
        /// The file; must not exist
        file: PathBuf,
    },
    /// Replace the database by what is in a file
    Load {
        /// The file that `dump` wrote
        file: PathBuf,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let ui = Ui::new();
    let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    let url = given.map_or_else(stack::database_url, Ok)?;
    match &args.what {
        What::Dump { file } => dump(&url, file, &ui)?,
        What::Load { file, yes } => load(&url, file, *yes, &ui)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn dump(url: &str, file: &Path, ui: &Ui) -> Result<()> {
    ensure!(!file.exists(), "{} is there already", file.display());
    let mut command = program("pg_dump")?;
    command.args(["--format=custom", "--no-owner", "--no-privileges", "--schema=public", "--file"]);
    let done = succeed(command.arg(file).arg(url));
    if done.is_err() {
        let _ = fs::remove_file(file);
    }
    done?;
    let bytes = fs::metadata(file).context("pg_dump wrote nothing")?.len();
    ui.step(&format!("{}: {} KiB", file.display(), bytes.div_ceil(1024)));
    Ok(())
}

fn load(url: &str, file: &Path, yes: bool, ui: &Ui) -> Result<()> {
    ensure!(file.is_file(), "there is no file {}", file.display());
    ensure!(
        is_here(url),
        "the database is on another machine: its data would be gone; this is for development"
    );
    // As text first: a file that is no dump is told before anything is touched.
    let text = file.with_extension("sql.part");
    let mut command = program("pg_restore")?;
    command.args(["--no-owner", "--no-privileges", "--exit-on-error", "--file"]).arg(&text).arg(file);
    let outcome = succeed(&mut command).and_then(|()| {
        agree(file, yes)?;
        // A newer pg_dump sets what an older server does not know; the schema itself stays.
        let sql = fs::read_to_string(&text).context("the dump is no text")?;
        let kept = |line: &&str| {
            !["SET transaction_timeout", "CREATE SCHEMA public", "COMMENT ON SCHEMA public"]
                .iter()
                .any(|start| line.starts_with(start))
        };
        let sql: String = sql.lines().filter(kept).flat_map(|line| [line, "\n"]).collect();
        fs::write(&text, format!("{EMPTY}{sql}")).context("cannot write beside the dump")?;
        let mut command = program("psql")?;
        command.args(["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--file"]);
        succeed(command.arg(&text).arg(url))
    });
    let _ = fs::remove_file(&text);
    outcome?;
    ui.step(&format!(
        "the database is what {} holds; `cargo stack` brings it up to this checkout",
        file.display()
    ));
    Ok(())
}

fn agree(file: &Path, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !System::current().terminal {
        return Err(Unavailable("replacing the data needs a yes\n  - add --yes".to_owned()).into());
    }
    let question = format!("Replace everything in the database by {}?", file.display());
    ensure!(devstack::ask(&question)?, "nothing was changed");
    Ok(())
}

/// An address of this machine.
fn is_here(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let only = ["127.0.0.1", "localhost", "[::1]"];
    !rest.contains("host=")
        && only.iter().any(|here| host.strip_prefix(here).is_some_and(|r| r.is_empty() || r.starts_with(':')))
}

fn program(name: &str) -> Result<Command> {
    let found = System::current().program(name).ok_or_else(|| {
        Unavailable(format!(
            "there is no {name} here\n  - install Postgres's programs (Debian, Ubuntu: apt-get install postgresql-client)"
        ))
    })?;
    Ok(Command::new(found))
}

fn succeed(command: &mut Command) -> Result<()> {
    let out = output_within(command, TIMEOUT)?;
    if !out.status.success() {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
        bail!("{name}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_database_of_this_machine_is_overwritten() {
        for url in ["postgres://u:p@127.0.0.1:5432/b", "postgres://localhost/b", "postgres://u@[::1]:1/b"] {
            assert!(is_here(url), "{url}");
        }
        for url in [
            "postgres://u:p@db.example.com/b",
            "postgres://u:p@localhost.example.com/b",
            "postgres://u:127.0.0.1@db/b",
            "postgres://127.0.0.1/b?host=db",
            "nonsense",
        ] {
            assert!(!is_here(url), "{url}");
        }
    }
}
