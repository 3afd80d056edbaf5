//! `ballast credentials`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use config::{CredentialsConfig, DatabaseConfig, EnvVars};
use db::{Database, SealingKeys, credentials::Resealed};
use uuid::Uuid;

use super::{refuse_configuration, say, tool};

/// Look after the keys that stored credentials, and the secrets of webhook endpoints, are encrypted with.
///
/// CHANNEL_ENCRYPTION_KEY holds the keys: the first one encrypts, all of them decrypt. How to exchange them:
/// docs/runbooks/key-rotation.md.
#[derive(Parser)]
#[command(after_help = "Examples:\n  ballast credentials status\n  ballast credentials rotate")]
pub(crate) struct Credentials {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Say how many secrets each key encrypted; exit 1 when one of these keys is missing
    Status,
    /// Encrypt everything anew with the first key; safe to interrupt, to repeat, and while others run
    Rotate,
}

/// So many in one transaction.
const BATCH: i64 = 100;

impl Credentials {
    pub(crate) fn run(self) -> ExitCode {
        let database = DatabaseConfig::from_vars(&EnvVars);
        let (database, config) = match (database, CredentialsConfig::from_vars(&EnvVars)) {
            (Ok(database), Ok(config)) => (database, config),
            (Err(one), Err(other)) => return refuse_configuration(&one.and(other)),
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => return refuse_configuration(&problems),
        };
        tool(async || {
            let database = Database::from_config(&database, "ballast-credentials")?;
            let keys = SealingKeys::from_config(&config.keys)?;
            match self.action {
                Action::Status => status(&database, &keys).await,
                Action::Rotate => rotate(&database, &keys).await,
            }
        })
    }
}

async fn status(database: &Database, keys: &SealingKeys) -> anyhow::Result<ExitCode> {
    let found =
        database.call("credentials.count_by_key", async |c| db::credentials::count_by_key(c).await).await?;
    let ids = keys.ids();
    let count = |id: &str| found.iter().find(|(key, _)| key == id).map_or(0, |(_, n)| *n);
    for (n, id) in ids.iter().enumerate() {
        let role = if n == 0 { "encrypts and decrypts" } else { "decrypts" };
        say(format_args!("{id}  {:>8} secrets  {role}", count(id)));
    }
    let mut code = ExitCode::SUCCESS;
    for (id, n) in found.iter().filter(|(id, _)| !ids.contains(id)) {
        say(format_args!("{id}  {n:>8} secrets  MISSING: put this key back into CHANNEL_ENCRYPTION_KEY"));
        code = ExitCode::FAILURE;
    }
    Ok(code)
}

/// How many secrets were encrypted anew, and how many could not be.
#[derive(Default)]
struct Rotated {
    done: usize,
    failed: usize,
}

async fn rotate(database: &Database, keys: &SealingKeys) -> anyhow::Result<ExitCode> {
    let mut all = Rotated::default();
    all.add(database, async |c, after| db::credentials::reseal(c, keys, after, BATCH).await).await?;
    all.add(database, async |c, after| db::webhook_endpoints::reseal(c, keys, after, BATCH).await).await?;
    let Rotated { done, failed } = all;
    say(format_args!("{done} encrypted anew with the key {}, {failed} failed", keys.current()));
    let code = status(database, keys).await?;
    Ok(if failed == 0 { code } else { ExitCode::FAILURE })
}

impl Rotated {
    /// Goes through one table, batch after batch.
    async fn add(
        &mut self,
        database: &Database,
        reseal: impl AsyncFn(&mut db::PgConnection, Uuid) -> db::Result<Resealed>,
    ) -> anyhow::Result<()> {
        let mut after = Uuid::nil();
        loop {
            let batch = async |c: &mut db::PgConnection| reseal(c, after).await;
            let part = database.transaction("credentials.reseal", batch).await?;
            self.done += part.done;
            for (id, error) in &part.failed {
                self.failed += 1;
                say(format_args!("{id}: {error}"));
            }
            let Some(last) = part.last else { return Ok(()) };
            after = last;
        }
    }
}
