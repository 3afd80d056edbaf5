//! `ballast doctor`.

use std::{process::ExitCode, time::Duration};

use config::{AiConfig, ApiConfig, CredentialsConfig, EnvVars, TrustedProxy, Vars as _, WorkerConfig};
use db::{Database, Redis};
use engine::Engines;

use super::{refuse_configuration, say, tool};

/// Check settings, secrets, Postgres, Redis, schema and engine, and say what to do.
///
/// Exit 0 when everything is fine, 1 when something is not, 78 when the configuration is wrong.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ballast doctor\n  ballast doctor --role worker")]
pub(crate) struct Doctor {
    /// Whose settings to check
    #[arg(long, value_enum, default_value = "all")]
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Api,
    Worker,
    All,
}

#[derive(Default)]
struct Findings {
    failed: bool,
}

impl Findings {
    fn report(&mut self, what: &str, result: Result<String, String>) {
        match result {
            Ok(text) => say(format_args!("ok    {what:<12} {text}")),
            Err(text) => {
                self.failed = true;
                say(format_args!("FAIL  {what:<12} {text}"));
            }
        }
    }
}

impl Doctor {
    pub(crate) fn run(self) -> ExitCode {
        let api = (self.role != Role::Worker).then(|| ApiConfig::from_vars(&EnvVars)).transpose();
        let worker = (self.role != Role::Api).then(|| WorkerConfig::from_vars(&EnvVars)).transpose();
        let (api, worker) = match (api, worker) {
            (Ok(api), Ok(worker)) => (api, worker),
            (Err(api), Err(worker)) => return refuse_configuration(&api.and(worker)),
            (Err(problems), Ok(_)) | (Ok(_), Err(problems)) => return refuse_configuration(&problems),
        };
        tool(async || {
            let mut findings = Findings::default();
            let stores = api.as_ref().map(|a| &a.stores).or_else(|| worker.as_ref().map(|w| &w.stores));
            let runtime = api.as_ref().map(|a| &a.runtime).or_else(|| worker.as_ref().map(|w| &w.runtime));
            if let Some(runtime) = runtime {
                findings.report("settings", Ok(format!("complete for {}", runtime.environment)));
            }
            if let Some(stores) = stores {
                let database = Database::from_config(&stores.database, "ballast-doctor")?;
                findings.report("postgres", postgres(&database).await);
                findings.report(
                    "schema",
                    database.check().await.map(|()| "new enough for this build".to_owned()),
                );
                let budget = connections(
                    &database,
                    stores.database.pool_size,
                    api.as_ref().map(|a| a.limits.replicas),
                );
                findings.report("connections", budget.await);
                let credentials =
                    api.as_ref().map(|a| &a.credentials).or_else(|| worker.as_ref().map(|w| &w.credentials));
                if let Some(credentials) = credentials {
                    findings.report("credentials", stored(&database, credentials).await);
                }
                let redis = Redis::from_config(&stores.redis)?;
                findings.report("redis", redis.check().await.map(|()| "answers".to_owned()));
            }
            if let Some(api) = &api {
                findings.report("clients", clients(api).await);
            }
            let ai = api.as_ref().map(|a| &a.ai).or_else(|| worker.as_ref().map(|w| &w.ai));
            if let Some(ai) = ai {
                engines(ai, &mut findings).await?;
            }
            if findings.failed {
                say("\nSee docs/configuration.md for every variable.");
                return Ok(ExitCode::FAILURE);
            }
            anyhow::Ok(ExitCode::SUCCESS)
        })
    }
}

async fn postgres(database: &Database) -> Result<String, String> {
    let version = database
        .call::<_, db::Error>("doctor.version", async |c| {
            let version: String = sqlx::query_scalar("show server_version").fetch_one(c).await?;
            Ok(version)
        })
        .await;
    // The health check says the same in words that help.
    let Ok(version) = version else {
        return Err(database.check().await.err().unwrap_or_else(|| "does not answer".to_owned()));
    };
    let major: u32 = version.split(['.', ' ']).next().and_then(|v| v.parse().ok()).unwrap_or(0);
    if major < 14 {
        return Err(format!("version {version} is too old: 14 or newer is needed"));
    }
    Ok(format!("version {version}"))
}

/// All processes together must fit into what the server allows.
async fn connections(database: &Database, pool: u32, replicas: Option<u32>) -> Result<String, String> {
    let max: Result<i32, db::Error> = database
        .call("doctor.max_connections", async |c| {
            Ok(sqlx::query_scalar("select current_setting('max_connections')::int").fetch_one(c).await?)
        })
        .await;
    let max = max.map_err(|_| "not known, because Postgres does not answer".to_owned())?;
    let api = replicas.unwrap_or(0);
    // Old and new release run side by side during a deploy; each worker has two connections beside its pool.
    let wanted = 2 * (api * pool + pool + 2);
    let sum = format!("2 x ({api} api x {pool} + 1 worker x {pool} + 2) = {wanted} of {max}");
    if i64::from(wanted) > i64::from(max) * 9 / 10 {
        return Err(format!("{sum} is too much: lower DATABASE_POOL_SIZE, or put PgBouncer in front"));
    }
    Ok(format!("{sum} during a deploy"))
}

/// Is every key there that something stored was encrypted with?
async fn stored(database: &Database, config: &CredentialsConfig) -> Result<String, String> {
    let known = db::SealingKeys::from_config(&config.keys).map_err(|e| e.to_string())?.ids();
    let count = async |c: &mut db::PgConnection| db::credentials::count_by_key(c).await;
    let found = database.call("doctor.credentials", count).await;
    let found = found.map_err(|_| "not known, because Postgres does not answer as it should".to_owned())?;
    let missing: i64 = found.iter().filter(|(id, _)| !known.contains(id)).map(|(_, n)| n).sum();
    match missing {
        0 => {
            Ok(format!("{} stored, all readable with these keys", found.iter().map(|(_, n)| n).sum::<i64>()))
        }
        n => Err(format!(
            "{n} are encrypted with a key that CHANNEL_ENCRYPTION_KEY lacks: `ballast credentials status`"
        )),
    }
}

/// Whose word on the client's address counts, and what an API that runs here has seen of it.
async fn clients(api: &ApiConfig) -> Result<String, String> {
    let on_railway = EnvVars.get("RAILWAY_ENVIRONMENT_NAME").is_some();
    let text = match &api.trusted_proxy {
        TrustedProxy::None if on_railway => {
            return Err("TRUSTED_PROXY=none on Railway: all requests come from its edge, so all users would share one \
                        limit; set TRUSTED_PROXY=railway"
                .to_owned());
        }
        TrustedProxy::None => "are who connects (TRUSTED_PROXY=none)".to_owned(),
        TrustedProxy::Railway => "are named by Railway's edge in X-Real-IP".to_owned(),
        TrustedProxy::Networks(networks) => {
            let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
            format!("are named in X-Forwarded-For by {}", networks.join(", "))
        }
    };
    match seen_here(api.runtime.http.port).await {
        Some(problem) => Err(problem),
        None => Ok(text),
    }
}

/// What the health report of an API on this machine says about client addresses, should there be one.
async fn seen_here(port: u16) -> Option<String> {
    let client = super::role::http_client().ok()?;
    let request = client.get(format!("http://127.0.0.1:{port}/health")).timeout(Duration::from_secs(3));
    let report = request.send().await.ok()?.bytes().await.ok()?;
    let report: serde_json::Value = serde_json::from_slice(&report).ok()?;
    report["checks"]["client_address"]["error"].as_str().map(str::to_owned)
}

/// Does every engine answer?
async fn engines(config: &AiConfig, findings: &mut Findings) -> anyhow::Result<()> {
    let engines = Engines::from_config(config)?;
    for (position, name) in engines.names().enumerate() {
        let what = if position == 0 { "engine".to_owned() } else { format!("engine:{name}") };
        let answer = tokio::time::timeout(Duration::from_secs(5), engines.check(name)).await;
        let answer = answer.unwrap_or_else(|_| Err("does not answer within 5 s".to_owned()));
        findings.report(&what, answer.map(|()| "answers".to_owned()));
    }
    Ok(())
}
