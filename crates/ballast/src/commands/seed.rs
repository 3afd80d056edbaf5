//! `ballast seed`.

use std::process::ExitCode;

use ::api::auth::{ApiKeySecret, hash_password};
use anyhow::bail;
use config::{DatabaseConfig, EnvVars, Environment, Vars as _};
use db::Database;
use uuid::Uuid;

use super::{refuse_configuration, say, tool};

const EMAIL: &str = "demo@example.com";
/// Known to everybody, so never outside development.
const PASSWORD: &str = "ballast-demo-password";

/// Make the demo user, an administrator, and an API key.
///
/// Always the same values, so that examples can be copied; refused outside development. Doing it again changes nothing.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ballast seed\n  ballast seed --json")]
pub(crate) struct Seed {
    /// Print {"email", "password", "api_key"}
    #[arg(long)]
    json: bool,
}

pub(crate) struct Demo {
    pub(crate) email: &'static str,
    api_key: String,
}

impl Seed {
    pub(crate) fn run(self) -> ExitCode {
        let config = match DatabaseConfig::from_vars(&EnvVars) {
            Ok(config) => config,
            Err(problems) => return refuse_configuration(&problems),
        };
        tool(async || {
            let database = Database::from_config(&config, "ballast-seed")?;
            let demo = seed(&database).await?;
            if self.json {
                say(
                    serde_json::json!({ "email": demo.email, "password": PASSWORD, "api_key": demo.api_key }),
                );
            } else {
                say(format_args!(
                    "e-mail    {}\npassword  {PASSWORD}\napi key   {}",
                    demo.email, demo.api_key
                ));
            }
            anyhow::Ok(ExitCode::SUCCESS)
        })
    }
}

pub(crate) fn refuse_outside_development(what: &str) -> anyhow::Result<()> {
    let environment = EnvVars.get("APP_ENV").map_or(Ok(Environment::Development), |text| text.parse());
    let on_railway = EnvVars.get("RAILWAY_ENVIRONMENT_NAME").is_some();
    match environment {
        Ok(Environment::Development) if !on_railway => Ok(()),
        _ => bail!("`ballast {what}` is for development only (APP_ENV says otherwise)"),
    }
}

/// Makes the demo data where it is missing.
pub(crate) async fn seed(database: &Database) -> anyhow::Result<Demo> {
    refuse_outside_development("seed")?;
    let key = ApiKeySecret::from_seed("ballast demo key");
    let hash = hash_password(PASSWORD)?;
    let scopes = ["ai".to_owned(), "jobs".to_owned()];
    database
        .transaction::<_, db::Error>("seed", async |c| {
            let user = match db::users::find_by_email(c, EMAIL).await? {
                Some(user) => user,
                None => db::users::insert(c, Uuid::now_v7(), EMAIL, &hash, "admin").await?,
            };
            db::users::confirm_email(c, user.id, EMAIL).await?;
            if db::api_keys::record(c, key.public_id()).await?.is_none() {
                let new = db::api_keys::NewApiKey {
                    id: Uuid::now_v7(),
                    user_id: user.id,
                    name: "demo",
                    public_id: key.public_id(),
                    secret_hash: &key.hash(),
                    scopes: &scopes,
                    expires_at: None,
                };
                db::api_keys::insert(c, &new, i64::MAX).await?;
            }
            Ok(())
        })
        .await?;
    Ok(Demo { email: EMAIL, api_key: key.text() })
}
