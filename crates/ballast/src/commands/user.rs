//! `ballast user`.

use std::{io::Read as _, process::ExitCode};

use ::api::auth::{Passwords, hash_password, hex, mark_all};
use anyhow::{Context as _, anyhow, bail};
use clap::{Parser, Subcommand};
use config::{EnvVars, LimitsConfig, StoresConfig};
use db::{Database, PgConnection, Redis, audit::Event, users::User};
use job_specs::AccountMail;
use jobs::EnqueueOptions;
use limits::{Limiter, Policies};
use serde_json::json;
use uuid::Uuid;

use super::{refuse_configuration, say, tool};

/// Make accounts and look after them.
///
/// Works on Postgres and Redis themselves: DATABASE_URL and REDIS_URL, and no running API. What it changes is in the audit log.
/// Exit codes: 0 done (or so already), 1 not done, 2 wrong usage, 78 wrong configuration.
#[derive(Parser)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UserCommand {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  ballast user create ann@example.com                    prints a random password, once
  ballast user create ann@example.com --admin --password-stdin < password.txt
  ballast user promote ann@example.com
  ballast user disable ann@example.com                   ends every session and API key at once
  ballast user list";

#[derive(Subcommand)]
enum Action {
    /// Make an account; its password is random and printed once, or read from standard input
    Create {
        /// The address to log in with
        email: String,
        /// An administrator
        #[arg(long)]
        admin: bool,
        /// Read the password from standard input; never an argument, where others could see it
        #[arg(long)]
        password_stdin: bool,
        /// You know that the address is theirs: no mail asks to confirm it
        #[arg(long)]
        verified: bool,
    },
    /// Make an administrator of a user
    Promote {
        /// Whom
        email: String,
    },
    /// Make an ordinary user of an administrator
    Demote {
        /// Whom
        email: String,
    },
    /// Lock a user out: ends every session and revokes every API key
    Disable {
        /// Whom
        email: String,
    },
    /// Let a disabled user log in again; revoked API keys stay revoked
    Enable {
        /// Whom
        email: String,
    },
    /// List users, newest first
    List {
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1_000))]
        limit: u16,
    },
}

impl UserCommand {
    pub(crate) fn run(self) -> ExitCode {
        let (stores, limits) = match (StoresConfig::from_vars(&EnvVars), LimitsConfig::from_vars(&EnvVars)) {
            (Ok(stores), Ok(limits)) => (stores, limits),
            (Err(one), Err(other)) => return refuse_configuration(&one.and(other)),
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => return refuse_configuration(&problems),
        };
        tool(async || {
            let database = Database::from_config(&stores.database, "ballast-user")?;
            match self.action {
                Action::Create { email, admin, password_stdin, verified } => {
                    let role = if admin { "admin" } else { "user" };
                    create(&database, &email, role, password_stdin, verified).await?;
                }
                Action::Promote { email } => set_role(&database, &email, "admin").await?,
                Action::Demote { email } => set_role(&database, &email, "user").await?,
                Action::Disable { email } => {
                    let limiter =
                        Limiter::new(Redis::from_config(&stores.redis)?, Policies::from_config(&limits), 1);
                    disable(&database, &limiter, &email).await?;
                }
                Action::Enable { email } => enable(&database, &email).await?,
                Action::List { limit } => list(&database, limit).await?,
            }
            anyhow::Ok(ExitCode::SUCCESS)
        })
    }
}

async fn create(
    database: &Database,
    email: &str,
    role: &str,
    from_stdin: bool,
    verified: bool,
) -> anyhow::Result<()> {
    let email = normalize(email)?;
    let password = if from_stdin { read_password()? } else { random_password()? };
    let normalized = Passwords::normalize("password", &password, &email)
        .map_err(|e| anyhow!("{}", e.detail().to_owned()))?;
    let hash = hash_password(&normalized)?;
    let id = Uuid::now_v7();
    let made = database
        .transaction::<_, anyhow::Error>("users.insert", async |c| {
            db::users::insert(c, id, &email, &hash, role).await?;
            if verified {
                db::users::confirm_email(c, id, &email).await?;
            } else {
                let mail = AccountMail::VerifyEmail { user_id: id };
                jobs::enqueue(c, &mail, EnqueueOptions::default()).await?;
            }
            let detail = json!({ "by": "command line", "role": role, "verified": verified });
            Ok(audit(c, "registered", id, detail).await?)
        })
        .await;
    match made {
        Ok(()) if from_stdin => say(format_args!("made {role} {email}")),
        Ok(()) => say(format_args!("made {role} {email}\npassword: {password}")),
        Err(error) if is_taken(&error) => bail!("there is a user with the address {email} already"),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn is_taken(error: &anyhow::Error) -> bool {
    error.downcast_ref::<db::Error>().and_then(db::Error::constraint) == Some("users_email_key")
}

fn normalize(email: &str) -> anyhow::Result<String> {
    ::api::routes::auth::normalize_email(email).map_err(|e| anyhow!("{}", e.detail().to_owned()))
}

fn read_password() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().take(4_096).read_to_string(&mut text).context("standard input is not text")?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        bail!("there is no password on standard input")
    }
    Ok(password.to_owned())
}

fn random_password() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("the system gives no randomness")?;
    Ok(hex(&bytes))
}

/// The user, in a transaction, or an error in words.
async fn find(c: &mut PgConnection, email: &str) -> anyhow::Result<User> {
    let email = normalize(email)?;
    let user = db::users::find_by_email(c, &email).await?;
    user.with_context(|| format!("there is no user with the address {email}: `ballast user list`"))
}

async fn audit(
    c: &mut PgConnection,
    event: &str,
    user_id: Uuid,
    detail: serde_json::Value,
) -> db::Result<()> {
    db::audit::insert(c, &Event { event, user_id: Some(user_id), detail, ..Event::default() }).await
}

async fn set_role(database: &Database, email: &str, role: &str) -> anyhow::Result<()> {
    let changed = database
        .transaction::<_, anyhow::Error>("users.set_role", async |c| {
            let user = find(c, email).await?;
            let changed = db::users::set_role(c, user.id, role).await?;
            if changed {
                audit(c, "role_changed", user.id, json!({ "by": "command line", "role": role })).await?;
            }
            Ok(changed)
        })
        .await?;
    let word = if changed { "now" } else { "already" };
    say(format_args!("{email} is {word} in the role {role}"));
    Ok(())
}

async fn disable(database: &Database, limiter: &Limiter, email: &str) -> anyhow::Result<()> {
    let disabled = database
        .transaction::<_, anyhow::Error>("users.disable", async |c| {
            let user = find(c, email).await?;
            let disabled = db::users::disable(c, user.id).await?;
            if disabled.now {
                audit(c, "user_disabled", user.id, json!({ "by": "command line" })).await?;
            }
            Ok(disabled)
        })
        .await?;
    // The database has it; what follows makes it known to the replicas at once.
    mark_all(limiter, &disabled.sessions, &disabled.api_keys).await.map_err(|error| {
        anyhow!(
            "the user is disabled, but Redis cannot be told ({error}): access tokens work until they expire, \
             API keys for five minutes. Run this again when Redis answers"
        )
    })?;
    let word = if disabled.now { "now" } else { "already" };
    say(format_args!("{email} is {word} disabled; every session and API key has ended"));
    Ok(())
}

async fn enable(database: &Database, email: &str) -> anyhow::Result<()> {
    let changed = database
        .transaction::<_, anyhow::Error>("users.enable", async |c| {
            let user = find(c, email).await?;
            let changed = db::users::enable(c, user.id).await?;
            if changed {
                audit(c, "user_enabled", user.id, json!({ "by": "command line" })).await?;
            }
            Ok(changed)
        })
        .await?;
    let word = if changed { "now" } else { "already" };
    say(format_args!("{email} is {word} enabled; API keys that were revoked stay revoked"));
    Ok(())
}

async fn list(database: &Database, limit: u16) -> anyhow::Result<()> {
    let users = database.call("users.list", async |c| db::users::list(c, None, limit.into()).await).await?;
    for user in users {
        let state = if user.disabled_at.is_some() { "disabled" } else { "enabled" };
        let made = user.created_at.format("%Y-%m-%d");
        say(format_args!("{}  {:<5}  {state:<8}  {made}  {}", user.id, user.role, user.email));
    }
    Ok(())
}
