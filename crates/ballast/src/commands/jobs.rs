//! `ballast jobs`: the queue, from the command line.

use std::process::ExitCode;

use ::api::operator::{self, CronStatus, Enqueue, JobDetails, JobPage, QueueStatus};
use ::jobs::{JobState, ListFilter, Priority};
use anyhow::{Context as _, anyhow};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Parser, Subcommand};
use config::{DatabaseConfig, EnvVars};
use db::{Database, PgConnection, audit::Event};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{refuse_configuration, say, tool};

/// Look at the queue and steer it.
///
/// Works on the database itself, so it needs DATABASE_URL and no running API. What it changes is noted in the audit log.
/// Exit codes: 0 done, 1 not done (no such job, or its state forbids it), 2 wrong usage, 78 wrong configuration.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  ballast jobs list --state discarded\n  ballast jobs show 42\n  ballast jobs retry 42 43\n  ballast jobs enqueue echo '{\"message\":\"hello\"}' --delay 10m\n  ballast jobs pause email\n  ballast jobs cron --json"
)]
pub(crate) struct Jobs {
    #[command(subcommand)]
    action: Action,
    /// Print JSON, in the words of the admin API
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// List jobs, newest first; finished ones as long as they are kept
    #[command(after_help = "Example:\n  ballast jobs list --state ready --kind send_email --limit 20")]
    List(List),
    /// Everything about one job: payload, progress, result, errors
    #[command(after_help = "Example:\n  ballast jobs show 42")]
    Show {
        /// The job's id
        id: i64,
    },
    /// Run jobs again: discarded and cancelled ones start over, waiting ones are due now
    #[command(after_help = "Example:\n  ballast jobs retry 42 43")]
    Retry {
        /// Ids of jobs
        #[arg(required = true)]
        ids: Vec<i64>,
    },
    /// Cancel jobs: waiting ones at once, running ones are asked to stop
    #[command(after_help = "Example:\n  ballast jobs cancel 42")]
    Cancel {
        /// Ids of jobs
        #[arg(required = true)]
        ids: Vec<i64>,
    },
    /// Enqueue a job of any kind that this build knows
    #[command(
        after_help = "Examples:\n  ballast jobs enqueue cleanup\n  ballast jobs enqueue echo '{\"message\":\"hello\"}' --delay 10m"
    )]
    Enqueue(New),
    /// List queues: what waits, what runs, what is paused
    #[command(after_help = "Example:\n  ballast jobs queues")]
    Queues,
    /// Begin nothing of a queue until it is resumed; what runs goes on
    #[command(after_help = "Example:\n  ballast jobs pause email")]
    Pause {
        /// The queue's name
        queue: String,
    },
    /// Let a paused queue go on
    #[command(after_help = "Example:\n  ballast jobs resume email")]
    Resume {
        /// The queue's name
        queue: String,
    },
    /// List cron lines with their last and next tick
    #[command(after_help = "Example:\n  ballast jobs cron")]
    Cron,
}

#[derive(clap::Args)]
struct List {
    /// ready, running, completed, discarded or cancelled
    #[arg(long, value_parser = word::<JobState>)]
    state: Option<JobState>,
    /// Of this kind
    #[arg(long)]
    kind: Option<String>,
    /// In this queue
    #[arg(long)]
    queue: Option<String>,
    /// Older than the job with this id: the next page
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=i64::from(operator::MAX_PAGE)))]
    limit: u16,
}

#[derive(clap::Args)]
struct New {
    /// Which kind
    kind: String,
    /// Its payload as JSON
    #[arg(default_value = "{}", value_parser = payload)]
    args: Value,
    /// Another queue than the kind's own
    #[arg(long)]
    queue: Option<String>,
    /// urgent, high, normal or low
    #[arg(long, value_parser = word::<Priority>)]
    priority: Option<Priority>,
    /// Run so long from now, such as 10m
    #[arg(long, value_parser = seconds, conflicts_with = "at")]
    delay: Option<u32>,
    /// Run at this time, such as 2026-11-21T08:00:00Z
    #[arg(long)]
    at: Option<DateTime<Utc>>,
    /// Another number of attempts than the kind's own
    #[arg(long, value_parser = clap::value_parser!(i16).range(1..))]
    max_attempts: Option<i16>,
}

impl Jobs {
    pub(crate) fn run(self) -> ExitCode {
        let config = match DatabaseConfig::from_vars(&EnvVars) {
            Ok(config) => config,
            Err(problems) => return refuse_configuration(&problems),
        };
        tool(async || {
            let database = Database::from_config(&config, "ballast-jobs")?;
            self.action.run(&database, self.json).await
        })
    }
}

impl Action {
    async fn run(self, database: &Database, json: bool) -> anyhow::Result<ExitCode> {
        match self {
            Self::List(list) => {
                let page = call(database, async |c| operator::list(c, list.filter()).await).await?;
                show(json, &page, jobs_table);
            }
            Self::Show { id } => {
                let job = call(database, async |c| operator::show(c, id).await).await;
                show(json, &job.with_context(|| format!("job {id}"))?, job_sheet);
            }
            Self::Retry { ids } => {
                return each(&ids, json, async |id| {
                    call(database, async |c| operator::retry(c, id, &by_hand()).await).await
                })
                .await;
            }
            Self::Cancel { ids } => {
                return each(&ids, json, async |id| {
                    call(database, async |c| operator::cancel(c, id, &by_hand()).await).await
                })
                .await;
            }
            Self::Enqueue(new) => {
                let new = new.job();
                let enqueue = async |c: &mut PgConnection| operator::enqueue(c, new, &by_hand()).await;
                show(json, &call(database, enqueue).await?, one_line);
            }
            Self::Queues => {
                let queues = call(database, async |c| operator::queues(c).await).await?;
                show(json, &queues, |queues| queues_table(queues));
            }
            Self::Pause { queue } => {
                let set =
                    async |c: &mut PgConnection| operator::set_paused(c, &queue, true, &by_hand()).await;
                show(json, &call(database, set).await?, |q| queues_table(std::slice::from_ref(q)));
            }
            Self::Resume { queue } => {
                let set =
                    async |c: &mut PgConnection| operator::set_paused(c, &queue, false, &by_hand()).await;
                show(json, &call(database, set).await?, |q| queues_table(std::slice::from_ref(q)));
            }
            Self::Cron => {
                let lines = call(database, async |c| operator::cron(c).await).await?;
                show(json, &lines, |lines| cron_table(lines));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    fn filter(self) -> ListFilter {
        let Self { state, kind, queue, before, limit } = self;
        ListFilter { state, kind, queue, owner: None, before, limit }
    }
}

impl New {
    fn job(self) -> Enqueue {
        let Self { kind, args, queue, priority, delay, at, max_attempts } = self;
        Enqueue { kind, args, queue, priority, run_at: at, delay_seconds: delay, max_attempts }
    }
}

/// For the audit log: nobody who is logged in, but somebody with the database's password.
fn by_hand() -> Event<'static> {
    Event::default()
}

/// Calls in a transaction, and tells a person what went wrong.
async fn call<T>(
    database: &Database,
    work: impl AsyncFnOnce(&mut PgConnection) -> ::api::Result<T>,
) -> anyhow::Result<T> {
    database.transaction("jobs.command", work).await.map_err(|error| match error.source() {
        Some(source) => anyhow!("{source:#}"),
        None => anyhow!("{}", error.detail()),
    })
}

/// Does it for each id, whatever becomes of the others; 1 when one of them was refused.
#[expect(clippy::print_stderr, reason = "this is a command's answer to a person")]
async fn each(
    ids: &[i64],
    json: bool,
    work: impl AsyncFn(i64) -> anyhow::Result<JobDetails>,
) -> anyhow::Result<ExitCode> {
    let (mut done, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for id in ids {
        match work(*id).await {
            Ok(job) if json => done.push(job),
            Ok(job) => one_line(&job),
            Err(error) => {
                eprintln!("error: job {id}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if json {
        print_json(&done);
    }
    Ok(code)
}

fn show<T: Serialize>(json: bool, value: &T, human: impl FnOnce(&T)) {
    if json { print_json(value) } else { human(value) }
}

fn print_json(value: &impl Serialize) {
    say(serde_json::to_string_pretty(value).expect("these values are JSON"));
}

fn jobs_table(page: &JobPage) {
    let rows = page.data.iter().map(|job| {
        let attempt = format!("{}/{}", job.attempt, job.max_attempts);
        let when =
            job.finished_at.or(job.started_at.filter(|_| job.state == "running")).unwrap_or(job.run_at);
        [job.id.clone(), job.kind.clone(), job.queue.clone(), state(job), attempt, time(when)]
    });
    table(["ID", "KIND", "QUEUE", "STATE", "ATTEMPT", "DUE/STARTED/ENDED"], rows);
    if let Some(next) = &page.next {
        say(format_args!("more: --before {next}"));
    }
}

fn job_sheet(job: &JobDetails) {
    let line = |name: &str, value: &str| say(format_args!("{name:<13} {}", clean(value)));
    line("id", &job.id);
    line("kind", &job.kind);
    line("queue", &job.queue);
    line("priority", json!(job.priority).as_str().unwrap_or_default());
    line("state", &state(job));
    line("attempt", &format!("{} of {}", job.attempt, job.max_attempts));
    for (name, at) in [
        ("created", Some(job.created_at)),
        ("due", Some(job.run_at)),
        ("started", job.started_at),
        ("ended", job.finished_at),
    ] {
        line(name, &at.map_or_else(|| "-".to_owned(), time));
    }
    line("owner", &job.owner.map_or_else(|| "-".to_owned(), |id| id.to_string()));
    line("args", &job.args.to_string());
    if let Some(progress) = &job.progress {
        let note = progress.note.as_deref().unwrap_or_default();
        line("progress", &format!("{} of {} {note}", progress.done, progress.total));
    }
    if let Some(result) = &job.result {
        line("result", &result.to_string());
    }
    for failure in &job.errors {
        line(&format!("error {}", failure.attempt), &format!("{}  {}", time(failure.at), failure.error));
    }
}

fn one_line(job: &JobDetails) {
    say(format_args!("{} {} {}", job.id, job.kind, state(job)));
}

fn state(job: &JobDetails) -> String {
    if job.cancel_requested { format!("{}, cancel requested", job.state) } else { job.state.to_owned() }
}

fn queues_table(queues: &[QueueStatus]) {
    let rows = queues.iter().map(|q| {
        let oldest = format!("{:.0} s", q.oldest_ready_seconds);
        let paused = q.paused_at.map_or_else(|| "-".to_owned(), time);
        [q.name.clone(), q.ready.to_string(), q.scheduled.to_string(), q.running.to_string(), oldest, paused]
    });
    table(["QUEUE", "READY", "SCHEDULED", "RUNNING", "OLDEST", "PAUSED SINCE"], rows);
}

fn cron_table(lines: &[CronStatus]) {
    let or_never = |at: Option<DateTime<Utc>>| at.map_or_else(|| "never".to_owned(), time);
    let rows = lines.iter().map(|line| {
        let schedule = format!("{} ({})", line.schedule, line.timezone);
        let last_job = line.last_job.clone().unwrap_or_else(|| "-".to_owned());
        [
            line.name.clone(),
            schedule,
            line.kind.clone(),
            or_never(line.last_tick),
            last_job,
            or_never(line.next_tick),
        ]
    });
    table(["LINE", "SCHEDULE", "KIND", "LAST TICK", "ITS JOB", "NEXT TICK"], rows);
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(rows.map(|row| row.map(|cell| clean(&cell))))
        .collect();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(i, cell)| {
            let width = rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
            format!("{cell:<width$}")
        });
        say(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Text from jobs must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn payload(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("this is not JSON: {error}"))
}

fn seconds(text: &str) -> Result<u32, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    u32::try_from(duration.as_secs()).map_err(|_| "that is too long".to_owned())
}

/// Reads a word as the API does.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(Value::from(text)).map_err(|error| error.to_string())
}
