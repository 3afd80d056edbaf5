//! `ballast migrate`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use config::{DatabaseConfig, EnvVars};
use db::{Database, MigrationStatus, Migrations};

use super::{refuse_configuration, say, tool};

/// Bring the database up to this build, or back.
///
/// One process migrates at a time; others wait for it and then find nothing to do. A database that is ahead of this build is
/// left alone: that is what a rollback looks like.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  ballast migrate            the same as `ballast migrate up`\n  ballast migrate status\n  ballast migrate new add_invoices\n  ballast migrate revert"
)]
pub(crate) struct Migrate {
    #[command(subcommand)]
    action: Option<Action>,
    /// How long to wait for another migrator
    #[arg(long, global = true, default_value = "60", value_name = "SECONDS")]
    wait: u64,
}

#[derive(Subcommand)]
enum Action {
    /// Apply what is missing
    Up {
        /// Make the demo user and API key afterwards (development only)
        #[arg(long)]
        seed: bool,
    },
    /// List all migrations and where they stand
    Status,
    /// Write the two files of a new migration into ./migrations
    New {
        /// What it does, such as `add_invoices`
        name: String,
    },
    /// Take the newest migration back
    Revert,
    /// Take everything back and apply it again; all data is lost
    Reset {
        /// Yes, lose all data
        #[arg(long)]
        yes: bool,
    },
}

impl Migrate {
    pub(crate) fn run(self) -> ExitCode {
        let action = self.action.unwrap_or(Action::Up { seed: false });
        if let Action::New { name } = &action {
            let name = name.clone();
            return tool(async || new_migration(&name));
        }
        let config = match DatabaseConfig::from_vars(&EnvVars) {
            Ok(config) => config,
            Err(problems) => return refuse_configuration(&problems),
        };
        let patience = Duration::from_secs(self.wait);
        tool(async || {
            let database = Database::from_config(&config, "ballast-migrate")?;
            let migrations = Migrations::new(&database);
            migrations.wait_for_server(patience).await?;
            match action {
                Action::Up { seed } => up(&migrations, patience, seed, &database).await,
                Action::Status => status(&migrations).await,
                Action::Revert => {
                    match migrations.revert(patience).await? {
                        Some(version) => say(format_args!("took back migration {version}")),
                        None => say("there is nothing to take back"),
                    }
                    Ok(ExitCode::SUCCESS)
                }
                Action::Reset { yes: false } => bail!("this deletes all data; say --yes to do it"),
                Action::Reset { yes: true } => {
                    super::seed::refuse_outside_development("migrate reset")?;
                    migrations.reset(patience).await?;
                    up(&migrations, patience, false, &database).await
                }
                Action::New { .. } => unreachable!("handled before a database is needed"),
            }
        })
    }
}

async fn up(
    migrations: &Migrations,
    patience: Duration,
    seed: bool,
    database: &Database,
) -> anyhow::Result<ExitCode> {
    let applied = migrations.up(patience).await?;
    let version = Migrations::expected_version();
    match applied {
        0 => say(format_args!(
            "nothing to do: the database has every migration of this build (up to {version})"
        )),
        n => say(format_args!(
            "applied {n} migration{}; the database is at version {version}",
            if n == 1 { "" } else { "s" }
        )),
    }
    if seed {
        let demo = super::seed::seed(database).await?;
        say(format_args!("demo user: {}", demo.email));
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(migrations: &Migrations) -> anyhow::Result<ExitCode> {
    let all = migrations.status().await?;
    for m in &all {
        let status = match m.status {
            MigrationStatus::Applied => "applied",
            MigrationStatus::Pending => "pending",
            MigrationStatus::Unknown => "applied by a newer build",
        };
        say(format_args!("{:>6}  {:<24}  {status}", m.version, m.description));
    }
    let pending = all.iter().filter(|m| m.status == MigrationStatus::Pending).count();
    say(format_args!("{pending} pending"));
    Ok(ExitCode::SUCCESS)
}

fn new_migration(name: &str) -> anyhow::Result<ExitCode> {
    let fine =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !fine {
        bail!("a migration's name takes a-z, 0-9 and _, such as add_invoices");
    }
    let folder = PathBuf::from("migrations");
    let files = std::fs::read_dir(&folder)
        .context("there is no folder ./migrations here: run this in the project's root")?;
    let last = files
        .filter_map(|f| f.ok()?.file_name().into_string().ok()?.split_once('_')?.0.parse::<u32>().ok())
        .max()
        .unwrap_or(0);
    for (direction, text) in [
        (
            "up",
            "-- Expand only: what the running release reads must stay. Index large tables in a file of their own that begins with\n-- `-- no-transaction` and uses `create index concurrently`.\n",
        ),
        ("down", "-- Takes the other file back.\n"),
    ] {
        let path = folder.join(format!("{:04}_{name}.{direction}.sql", last + 1));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say(path.display());
    }
    Ok(ExitCode::SUCCESS)
}
